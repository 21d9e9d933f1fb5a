//! The geometry of patches: what is cut out, how it is put together again, and which settings are refused.

mod common;

use common::reference::{bicubic, bilinear};
use common::rig::{Picture, Rig, floats, tables};
use common::{Random, tolerance};
use proptest::prelude::*;
use ucag::backend::{Dtype, Instr, Scope};
use ucag::grid::{Grid, GridPlan, Mode, Weighting};
use ucag::models::Preprocess;
use ucag::{Device, Explainer, Fit, Frame, Maps, Target};

fn paper(n: usize, rho: f64, alpha: f64) -> Grid {
    Grid { mode: Mode::Paper, n, rho: Some(rho), alpha }
}

/// All patches of a picture, `[patch][row][column][colour]`, by the backend.
fn unfold(plan: &GridPlan, picture: &Picture) -> Vec<f64> {
    let graph = common::tiny_graph("vgg11");
    let mut rig = Rig::new(&graph, 2);
    rig.tables = tables(plan, (1, 1), Weighting::One);
    rig.show(plan.image, &picture.pixels);
    let (h, w) = plan.scaled();
    let y = rig.result(h * w * 3, 1, Dtype::F32, Scope::Batch, plan.patches());
    let bytes = rig.run(Instr::Unfold { image: plan.image, y }, plan.patches(), &[y]);
    common::to_f64(&floats(&bytes[0]))
}

/// One map a class from the maps and probabilities of all patches, by the backend.
fn fold(plan: &GridPlan, map: (usize, usize), weighting: Weighting, lanes: usize, maps: &[f32], p: &[f32]) -> Vec<f64> {
    let graph = common::tiny_graph("vgg11");
    let mut rig = Rig::new(&graph, 2);
    rig.tables = tables(plan, map, weighting);
    let bytes = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect();
    let maps = rig.slot(map.0 * map.1, lanes, Dtype::F32, Scope::All, bytes(maps));
    let p = rig.slot(1, lanes, Dtype::F32, Scope::All, bytes(p));
    let canvas = plan.canvas();
    let y = rig.result(canvas.0 * canvas.1, lanes, Dtype::F32, Scope::Shared, 1);
    let found = rig.run(Instr::Fold { maps, p, map, y }, plan.patches(), &[y]);
    common::to_f64(&floats(&found[0]))
}

/// The same as sums that scatter, for one class in mode `paper`.
fn scatter(plan: &GridPlan, map: (usize, usize), maps: &[f64], p: &[f64]) -> Vec<f64> {
    let ((h, w), (rows, cols)) = (plan.image, plan.offsets());
    let (mut sum, mut count) = (vec![0.0; h * w], vec![0.0; h * w]);
    for (patch, (top, left)) in rows.iter().flat_map(|t| cols.iter().map(move |l| (t, l))).enumerate() {
        let values = &maps[patch * map.0 * map.1..][..map.0 * map.1];
        for (y, x) in (0..plan.patch().0).flat_map(|y| (0..plan.patch().1).map(move |x| (y, x))) {
            let at = (top + y) * w + left + x;
            sum[at] += p[patch].exp() * bilinear(values, map, plan.patch(), (y, x));
            count[at] += 1.0;
        }
    }
    sum.iter().zip(count).map(|(s, c)| s / c).collect()
}

#[test]
fn published_offsets_and_sizes() {
    let plan = |grid: Grid, side| GridPlan::new(grid, side, side).expect("a grid");
    let default = plan(Grid::default(), 224);
    assert_eq!(default.offsets().0, [0, 20, 40, 60, 80, 100]);
    assert_eq!((default.patch().0, default.scaled().0, default.patches()), (124, 322, 36));
    let large = plan(Grid::default(), 299);
    assert_eq!(large.offsets().1, [0, 27, 54, 80, 107, 134]);
    assert_eq!((large.patch().1, large.scaled().1), (165, 429));
    let mixed = GridPlan::new(Grid::default(), 224, 299).expect("a grid");
    assert_eq!((mixed.patch(), mixed.scaled()), ((124, 165), (322, 429)));

    let release = |side| plan(Grid { mode: Mode::Release, ..Grid::default() }, side);
    let (small, large) = (release(224), release(299));
    assert_eq!(small.offsets().0, [0, 20, 40, 60, 80, 100]);
    assert_eq!((small.patch().0, small.scaled().0, small.canvas().0), (124, 322, 224));
    assert_eq!(large.offsets().0, [0, 27, 54, 81, 108, 135]);
    assert_eq!((large.patch().0, large.scaled().0, large.canvas().0), (165, 429, 300));
    // The last patch is one pixel short of the picture's edge.
    assert_eq!(large.resample(&Preprocess::default()).rows.crops[5].len, 164);
}

/// Products such as 2.6·120 fall below the exact value; sizes must not.
#[test]
fn sizes_are_floors_of_exact_products() {
    for side in 1..700 {
        let plan = GridPlan::new(paper(1, 1.0, 2.6), side, side).expect("a grid");
        assert_eq!(plan.scaled().0, side * 26 / 10);
    }
}

#[test]
fn refused_settings() {
    let nan = f64::NAN;
    for (n, rho, alpha, part) in [
        (0, 0.555, 2.6, "found 0"),
        (257, 0.555, 2.6, "found 257"),
        (6, 0.0, 2.6, "found 0"),
        (6, -0.5, 2.6, "found -0.5"),
        (6, 2.0, 2.6, "found 2"),
        (6, nan, 2.6, "found NaN"),
        (6, 1e-9, 2.6, "patches of 0 pixels"),
        (6, 0.555, 0.0, "alpha, found 0"),
        (6, 0.555, -1.0, "found -1"),
        (6, 0.555, nan, "found NaN"),
        (6, 0.555, f64::INFINITY, "found inf"),
        (6, 0.555, 1e9, "alpha 1000000000"),
        (6, 0.555, 1e-9, "to nothing"),
        (1, 0.5, 2.6, "one patch must cover"),
        (2, 0.3, 2.6, "uncovered"),
    ] {
        let error = GridPlan::new(paper(n, rho, alpha), 100, 80).expect_err("refused").to_string();
        assert!(error.starts_with("grid: rows: ") && error.contains(part), "{n} {rho} {alpha}: {error}");
        let release = Grid { mode: Mode::Release, ..paper(n, rho, alpha) };
        assert!(GridPlan::new(release, 100, 80).is_err(), "release {n} {rho} {alpha}");
    }
    // An axis alone may be at fault.
    let error = GridPlan::new(paper(3, 0.5, 1.0), 100, 1).expect_err("refused").to_string();
    assert!(error.contains("columns") && error.contains("0 pixels"), "{error}");
}

/// One unscaled patch of the whole picture changes nothing but the weight.
#[test]
fn the_trivial_grid_is_the_plain_map() {
    for method in ["grad-cam", "lrp-epsilon-plus"] {
        let network = common::tiny("resnet18");
        let builder = Explainer::with_network(network).method(method).grid(paper(1, 1.0, 1.0)).maps(Maps::Both);
        let mut explainer = builder.fit(Fit::None).device(Device::Cpu).threads(2).build().expect("an explainer");
        let pixels = common::picture(43, 50, 1);
        let frame = Frame::rgb(&pixels, 43, 50).expect("a frame");
        let explanation = explainer.explain(&frame, &Target::Top(1)).expect("an explanation");
        let class = &explanation.classes[0];
        let (Some(plain), Some(ucag)) = (&class.plain, &class.ucag) else { panic!("both maps were asked for") };
        let weight = f64::from(class.probability).exp();
        assert!((1.0..=std::f64::consts::E).contains(&weight));
        let expected: Vec<f64> = plain.data.iter().map(|v| weight * f64::from(*v)).collect();
        let error = common::max_error(&common::to_f64(&ucag.data), &expected);
        assert!(error < tolerance::SAME_MAP, "{method}: {error:.1e}");
    }
}

/// Settings that cover a picture of any size.
fn covering() -> impl Strategy<Value = (Grid, usize, usize)> {
    let settings = (1..60_usize, 1..60_usize, 1..7_usize, 0.35..1.0_f64, 0.4..3.0_f64);
    settings.prop_filter("too long and narrow", |(h, w, ..)| is_explained(*h, *w)).prop_map(|(h, w, n, rho, alpha)| {
        let rho = if n == 1 { 1.0 } else { rho };
        (paper(n, rho, alpha), h, w)
    })
}

/// Whether pictures of this shape are explained at all.
fn is_explained(h: usize, w: usize) -> bool {
    h.max(w) <= 20 * h.min(w)
}

/// A plan for such settings; small pictures and wide steps are refused, and then there is nothing to test.
fn plan((grid, h, w): (Grid, usize, usize)) -> Result<GridPlan, TestCaseError> {
    GridPlan::new(grid, h, w).map_err(|e| TestCaseError::reject(e.to_string()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn patches_lie_inside_and_leave_nothing_out(setting in covering()) {
        let plan = plan(setting)?;
        let (h, w) = plan.image;
        let (rows, cols) = plan.offsets();
        for (offsets, side, patch) in [(rows, h, plan.patch().0), (cols, w, plan.patch().1)] {
            let covered = |pixel: &usize| offsets.iter().any(|o| (*o..o + patch).contains(pixel));
            prop_assert!((0..side).all(|pixel| covered(&pixel)));
            prop_assert!(offsets.iter().all(|o| o + patch <= side));
            prop_assert_eq!((offsets[0], offsets[offsets.len() - 1]), (0, side - patch));
        }
    }

    #[test]
    fn release_patches_lie_inside_the_canvas(side in 20..400_usize, n in 2..8_usize) {
        let grid = Grid { mode: Mode::Release, n, ..Grid::default() };
        let Ok(plan) = GridPlan::new(grid, side, side) else { return Ok(()) };
        let (offsets, canvas) = (plan.offsets().0, plan.canvas().0);
        prop_assert!(offsets.iter().all(|o| *o < side && o + plan.patch().0 <= canvas));
        prop_assert!(canvas + n >= side + 4 && canvas <= side + 2, "canvas {} of {}", canvas, side);
        let crops = plan.resample(&Preprocess::default()).rows.crops;
        prop_assert!(crops.iter().all(|c| c.start + c.len <= side && c.len > 0));
    }

    /// The whole picture, unscaled, is the normalised picture, bit for bit.
    #[test]
    fn unfolding_without_scaling_normalises(h in 1..40_usize, w in 1..40_usize, seed: u64) {
        prop_assume!(is_explained(h, w));
        let picture = Picture { size: (h, w), pixels: Random(seed).bytes(h * w * 3) };
        let found = unfold(&GridPlan::new(paper(1, 1.0, 1.0), h, w).expect("a grid"), &picture);
        prop_assert_eq!(found, picture.normalised());
    }

    /// Bicubic samples of each patch, 1/α apart, that see nothing beyond the patch.
    #[test]
    fn unfolding_samples_each_patch(setting in covering(), seed: u64) {
        let alpha = setting.0.alpha;
        let plan = plan(setting)?;
        let picture = Picture { size: plan.image, pixels: Random(seed).bytes(plan.image.0 * plan.image.1 * 3) };
        let found = unfold(&plan, &picture);
        let (x, (sh, sw), (rows, cols)) = (picture.normalised(), plan.scaled(), plan.offsets());
        let position = |d: usize| (d as f64 + 0.5) / alpha - 0.5;
        let mut expected = vec![];
        for (top, left) in rows.iter().flat_map(|t| cols.iter().map(move |l| (*t, *l))) {
            for (dy, dx) in (0..sh).flat_map(|y| (0..sw).map(move |x| (y, x))) {
                for c in 0..3 {
                    let value = |r: usize, q: usize| x[((top + r) * plan.image.1 + left + q) * 3 + c];
                    expected.push(bicubic(value, plan.patch(), (position(dy), position(dx))));
                }
            }
        }
        prop_assert!(common::nmse(&found, &expected) < tolerance::OP);
    }

    #[test]
    fn folding_ones_gives_ones(setting in covering(), map in (1..9_usize, 1..9_usize)) {
        let plan = plan(setting)?;
        let ones = vec![1.0; map.0 * map.1 * plan.patches()];
        let folded = fold(&plan, map, Weighting::One, 1, &ones, &vec![0.5; plan.patches()]);
        prop_assert!(folded.iter().all(|v| (v - 1.0).abs() < 1e-6));
    }

    /// Two classes at once, each as a scatter of its own; weights lie between 1 and e.
    #[test]
    fn folding_gathers_what_patches_scatter(setting in covering(), map in (1..9_usize, 1..9_usize), seed: u64) {
        let plan = plan(setting)?;
        let (each, patches) = (map.0 * map.1, plan.patches());
        let maps = Random(seed).units(2 * each * patches);
        let p: Vec<f32> = Random(seed ^ 1).units(2 * patches).iter().map(|v| v.abs()).collect();
        let found = fold(&plan, map, Weighting::Exp, 2, &maps, &p);
        for (lane, found) in found.chunks_exact(found.len() / 2).enumerate() {
            let of: Vec<f32> = maps.chunks_exact(each).skip(lane).step_by(2).flatten().copied().collect();
            let p: Vec<f32> = p.iter().skip(lane).step_by(2).copied().collect();
            let expected = scatter(&plan, map, &common::to_f64(&of), &common::to_f64(&p));
            prop_assert!(common::nmse(found, &expected) < tolerance::OP);
        }
    }

    /// UCAG(c·E) = c·UCAG(E), exactly where c is a power of two.
    #[test]
    fn folding_is_linear(setting in covering(), seed: u64) {
        let plan = plan(setting)?;
        let (map, p) = ((3, 4), vec![0.7; plan.patches()]);
        let maps = Random(seed).units(12 * plan.patches());
        let scaled: Vec<f32> = maps.iter().map(|v| -8.0 * v).collect();
        let (once, more) = (fold(&plan, map, Weighting::Exp, 1, &maps, &p), fold(&plan, map, Weighting::Exp, 1, &scaled, &p));
        prop_assert!(once.iter().zip(&more).all(|(a, b)| -8.0 * a == *b));
    }
}

/// Mode `release`: one more patch in every count, weights relative to the largest.
#[test]
fn release_counts_one_more() {
    let plan = GridPlan::new(Grid { mode: Mode::Release, ..Grid::default() }, 224, 224).expect("a grid");
    let ones = vec![1.0; plan.patches()];
    let p: Vec<f32> = (0..36).map(|i| if i == 35 { 1.0 } else { 0.0 }).collect();
    let folded = fold(&plan, (1, 1), Weighting::ExpOverMax, 1, &ones, &p);
    let (first, last, centre) = (folded[0], folded[224 * 224 - 1], folded[110 * 224 + 110]);
    let light = (-1.0_f64).exp();
    for (found, expected) in [(first, light / 2.0), (last, 0.5), (centre, (35.0 * light + 1.0) / 37.0)] {
        assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
    }
}

/// Mode `aligned`: steps alike, multiples of four scaled pixels, the image covered, and the paper's grid where that is so.
#[test]
fn aligned_grids() {
    let aligned = |n, size| GridPlan::new(Grid { mode: Mode::Aligned, n, ..Grid::default() }, size, size);
    for n in [2, 3, 6] {
        for size in [60, 97, 112, 224, 298, 400, 517] {
            let plan = aligned(n, size).expect("a grid");
            let (patch, alpha, (offsets, _)) = (plan.patch().0, plan.alpha().0, plan.offsets());
            let step = offsets[1] - offsets[0];
            assert!(offsets.windows(2).all(|pair| pair[1] - pair[0] == step), "{n} of {size}: {offsets:?}");
            assert_eq!((offsets[0], offsets[n - 1] + patch), (0, size), "{n} of {size}");
            let scaled = alpha * step as f64;
            assert!((scaled / 4.0 - (scaled / 4.0).round()).abs() < 1e-9, "{n} of {size}: a step of {scaled}");
            let (near, wanted) = (patch as f64 / size as f64, 0.555);
            assert!((near - wanted).abs() < 0.05 && (alpha - 2.6).abs() < 0.6, "{n} of {size}: {near}, {alpha}");
        }
    }
    let (found, paper) = (aligned(6, 224).expect("a grid"), GridPlan::new(Grid::default(), 224, 224).expect("a grid"));
    assert_eq!((found.patch(), found.scaled(), found.offsets()), (paper.patch(), paper.scaled(), paper.offsets()));
    let error = aligned(98, 97).expect_err("fewer pixels than patches").to_string();
    assert!(error.contains("98 patches cannot step alike over 97 pixels"), "{error}");
    let one = GridPlan::new(Grid { mode: Mode::Aligned, n: 1, rho: Some(1.0), alpha: 1.0 }, 50, 50).expect("a grid");
    assert_eq!(one.patch(), (50, 50));
}
