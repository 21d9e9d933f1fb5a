//! The CUDA backend as a whole: pictures, grids and networks against the CPU backend, recording and replay.
//!
//! Single instructions are in `ops.rs` and `layers.rs`, every method on every network in `methods.rs`.
#![cfg(feature = "cuda")]

mod common;

use std::sync::Arc;

use common::rig::{Rig, numbers, tables};
use common::{Random, tolerance};
use ucag::backend::cuda::Recording;
use ucag::backend::{ALIGN, Backend, Dtype, Instr, Pass, Scope, Slot, Step, Tables};
use ucag::grid::{Grid, GridPlan, Mode, Samples, Span, Weighting};
use ucag::methods::Level;
use ucag::net::Graph;
use ucag::{Device, Explainer, Explanation, Fit, Frame, Maps, Network, PixelFormat, Target, Working};

/// Grids that differ in everything: sizes that nothing divides, one patch, scaling up and down, both modes.
fn grids() -> Vec<GridPlan> {
    let paper = |n, rho, alpha| Grid { mode: Mode::Paper, n, rho: Some(rho), alpha };
    let release = |n| Grid { mode: Mode::Release, n, rho: None, alpha: 2.6 };
    let plan = |grid, h, w| GridPlan::new(grid, h, w).expect("a grid");
    vec![
        plan(paper(1, 1.0, 1.0), 13, 17),
        plan(paper(6, 0.555, 2.6), 37, 52),
        plan(paper(3, 0.7, 0.3), 61, 40),
        plan(paper(2, 0.6, 5.3), 9, 31),
        plan(release(6), 64, 48),
        plan(release(3), 41, 47),
    ]
}

fn graph() -> Arc<Graph> {
    common::case::no_layer()
}

/// Unfolds `samples` patches of `h` × `w` pixels on both backends.
fn assert_unfolds_alike(graph: &Arc<Graph>, what: &str, tables: &Tables, [h, w]: [usize; 2], samples: usize) {
    let image = tables.resample.image;
    let pixels = common::picture(image.0, image.1, samples as u64);
    let mut cpu = Rig::new(graph, 2);
    cpu.tables = tables.clone();
    cpu.show(image, &pixels);
    let y = cpu.result(h * w * 3, 1, Dtype::F32, Scope::Batch, samples);
    let expected = common::rig::floats(&cpu.run(Instr::Unfold { image, y }, samples, &[y])[0]);
    let mut cuda = Rig::on(common::cuda::backend(graph).expect("it was there"));
    cuda.tables = tables.clone();
    cuda.show(image, &pixels);
    let y = cuda.result(h * w * 4, 1, Dtype::F16, Scope::Batch, samples);
    let found = numbers(&cuda.run(Instr::Unfold { image, y }, samples, &[y])[0], Dtype::F16);
    assert!(found.iter().skip(3).step_by(4).all(|v| *v == 0.0), "{what}: the fourth channel");
    let found: Vec<f32> = found.as_chunks::<4>().0.iter().flat_map(|p| [p[0], p[1], p[2]]).collect();
    common::assert_nmse(&format!("unfold by {what}"), &found, &common::to_f64(&expected), tolerance::HALF_OP);
}

#[test]
fn patches_equal_the_cpus() {
    let graph = graph();
    let Some(backend) = common::cuda::backend(&graph) else { return };
    assert_eq!(backend.storage().input_channels, 4);
    for (i, plan) in grids().iter().enumerate() {
        let (h, w) = plan.scaled();
        let tables = tables(plan, (1, 1), Weighting::One);
        assert_unfolds_alike(&graph, &format!("grid {i}"), &tables, [h, w], plan.patches());
    }
}

/// What patches have in common is unfolded as one patch whose pixels go back and forth over the image.
#[test]
fn pixels_of_several_patches_equal_the_cpus() {
    let graph = graph();
    if common::cuda::device().is_none() {
        return;
    }
    for (i, plan) in grids().iter().enumerate() {
        let mut tables = tables(plan, (1, 1), Weighting::One);
        let (image, resample) = (plan.image, &mut tables.resample);
        let joined = |samples: &Samples, len: usize| Samples {
            patches: vec![samples.patches.concat()],
            crops: vec![Span { start: 0, len }],
        };
        resample.rows = joined(&resample.rows, image.0);
        resample.cols = joined(&resample.cols, image.1);
        let sides = [&resample.rows, &resample.cols].map(|axis| axis.patches[0].len());
        assert_unfolds_alike(&graph, &format!("all of grid {i}"), &tables, sides, 1);
    }
}

#[test]
fn folded_maps_equal_the_cpus() {
    let graph = graph();
    if common::cuda::device().is_none() {
        return;
    }
    for (i, plan) in grids().iter().enumerate() {
        for (lanes, map, weighting) in
            [(1, (1, 1), Weighting::One), (3, (4, 7), Weighting::Exp), (2, (9, 5), Weighting::ExpOverMax)]
        {
            let patches = plan.patches();
            let bytes = |values: Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
            let maps = bytes(Random(1).units(patches * lanes * map.0 * map.1));
            let p = bytes(Random(2).units(patches * lanes).iter().map(|v| v.abs()).collect());
            let canvas = plan.canvas();
            let len = canvas.0 * canvas.1;
            let mut cpu = Rig::new(&graph, 2);
            let mut cuda = Rig::on(common::cuda::backend(&graph).expect("it was there"));
            macro_rules! fold {
                ($rig:expr) => {{
                    $rig.tables = tables(plan, map, weighting);
                    let maps = $rig.slot(map.0 * map.1, lanes, Dtype::F32, Scope::All, maps.clone());
                    let p = $rig.slot(1, lanes, Dtype::F32, Scope::All, p.clone());
                    let y = $rig.result(len, lanes, Dtype::F32, Scope::Shared, 1);
                    common::rig::floats(&$rig.run(Instr::Fold { maps, p, map, y }, patches, &[y])[0])
                }};
            }
            let (expected, found) = (fold!(cpu), fold!(cuda));
            let what = format!("fold of grid {i}, {lanes} lanes, {weighting:?}");
            common::assert_nmse(&what, &found, &common::to_f64(&expected), tolerance::OP);
        }
    }
}

/// The working image is made on the device, from frames of any format and pitch, byte for byte as on the host.
#[test]
fn working_images_equal_the_cpus() {
    let graph = graph();
    if common::cuda::device().is_none() {
        return;
    }
    for (h, w, fit, size) in [
        (50, 70, Fit::None, 1),
        (50, 70, Fit::Fit, 33),
        (31, 20, Fit::Squash, 40),
        (90, 20, Fit::Squash, 32),
        (64, 97, Fit::Crop, 28),
        (1, 1, Fit::Fit, 5),
    ] {
        for (format, pad) in
            [(PixelFormat::Rgb, 0), (PixelFormat::Bgr, 5), (PixelFormat::Rgba, 12), (PixelFormat::Gray, 3)]
        {
            let stride = w * format.bytes() + pad;
            let pixels = Random(h as u64).bytes(stride * h);
            let frame = Frame::new(&pixels, h, w, stride, format).expect("a frame");
            let working = Working::new((h, w), fit, size).expect("a working image");
            let plan = GridPlan::whole(working.h, working.w);
            let mut cuda = Rig::on(common::cuda::backend(&graph).expect("it was there"));
            cuda.tables = tables(&plan, (1, 1), Weighting::One);
            let levels = cuda.tables.resample.levels;
            cuda.show_frame(&frame, &working);
            let y = cuda.result(working.h * working.w * 4, 1, Dtype::F16, Scope::Batch, 1);
            let found = numbers(&cuda.run(Instr::Unfold { image: plan.image, y }, 1, &[y])[0], Dtype::F16);
            let expected = working.pixels(&frame);
            for (i, level) in expected.iter().enumerate() {
                let want = half::f16::from_f32(levels[i % 3][usize::from(*level)]).to_f32();
                let got = found[i / 3 * 4 + i % 3];
                assert_eq!(got, want, "{w}×{h} {format:?} {fit:?}: value {i}, level {level}");
            }
        }
    }
}

struct Job {
    method: &'static str,
    grid: Grid,
    size: (usize, usize),
}

fn explainer(network: &Network, job: &Job, device: Device, batch: usize) -> Explainer {
    let builder = Explainer::with_network(network.clone()).method(job.method).grid(job.grid).maps(Maps::Both);
    builder.fit(Fit::None).device(device).batch(batch).threads(2).overlay(true).build().expect("an explainer")
}

fn explain(explainer: &mut Explainer, job: &Job, seed: u64) -> Explanation {
    let pixels = common::picture(job.size.0, job.size.1, seed);
    let frame = Frame::rgb(&pixels, job.size.0, job.size.1).expect("a frame");
    explainer.explain(&frame, &Target::Classes(vec![4, 1])).expect("an explanation")
}

/// Everything that an explanation says, as bits.
fn bits(explanation: &Explanation) -> Vec<u32> {
    let of_class = |c: &ucag::ClassExplanation| {
        let maps = c.ucag.iter().chain(&c.plain).flat_map(|m| m.data.clone());
        let overlay = c.overlay.iter().flat_map(|o| o.pixels.clone()).map(u32::from);
        let values = maps.chain(c.patch_probabilities.clone()).chain([c.probability]).map(f32::to_bits);
        values.chain(overlay).collect::<Vec<u32>>()
    };
    explanation.classes.iter().flat_map(of_class).collect()
}

/// Maps, probabilities and overlays of whole networks, both modes, plain and UCAG: near the CPU's, and the same bits for
/// every chunk, step by step and replayed.
#[test]
fn explanations_agree_with_the_cpus() {
    if common::cuda::device().is_none() {
        return;
    }
    let paper = Grid { n: 3, rho: Some(0.7), alpha: 1.3, ..Grid::default() };
    let release = Grid { mode: Mode::Release, n: 2, rho: Some(0.7), alpha: 1.3 };
    for (model, size) in [("resnet18", (47, 40)), ("resnet50", (40, 47)), ("vgg16", (48, 51))] {
        let network = common::tiny(model);
        for (method, grid) in [("grad-cam", paper), ("grad-cam", release), ("lrp-epsilon-plus", paper)] {
            let job = Job { method, grid, size };
            let what = format!("{method} on {model}, mode {:?}", grid.mode);
            let expected = explain(&mut explainer(&network, &job, Device::Cpu, 4), &job, 1);
            let mut gpu = explainer(&network, &job, Device::Cuda(0), 4);
            let found = explain(&mut gpu, &job, 1);
            assert_eq!(gpu.note(), None, "{what}");
            for (want, got) in expected.classes.iter().zip(&found.classes) {
                let of_class = got.class;
                assert!((want.probability - got.probability).abs() < 5e-3, "{what}: probability");
                for (kind, want, got) in [("ucag", &want.ucag, &got.ucag), ("plain", &want.plain, &got.plain)] {
                    let (want, got) = (want.as_ref().expect("a map"), got.as_ref().expect("a map"));
                    let what = format!("{what}, {kind}, class {}", of_class);
                    common::assert_nmse(&what, &got.data, &common::to_f64(&want.data), tolerance::HALF_MAP);
                    let rank = common::spearman::spearman(&want.data, &got.data);
                    println!("        Spearman {rank:.5}");
                    assert!(rank >= 0.99, "{what}: Spearman {rank}");
                }
                let (want, got) = (want.overlay.as_ref().expect("an overlay"), got.overlay.as_ref().expect("one"));
                assert_eq!((want.h, want.w), (got.h, got.w), "{what}");
                let distance: f64 = want.pixels.iter().zip(&got.pixels).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
                let mean = distance / want.pixels.len() as f64;
                assert!(mean < 2.0, "{what}: overlays differ by {mean} levels on average");
            }
            let first = bits(&found);
            for _ in 0..3 {
                assert!(bits(&explain(&mut gpu, &job, 1)) == first, "{what}: recorded or replayed, other bits");
            }
            let other = bits(&explain(&mut gpu, &job, 2));
            assert!(other != first, "{what}: a replay does not see the new picture");
            for batch in [1, 2, 9] {
                let again = bits(&explain(&mut explainer(&network, &job, Device::Cuda(0), batch), &job, 1));
                assert!(again == first, "{what}: other bits with batches of {batch}");
            }
        }
    }
}

/// Frames of many sizes and formats through one explainer: recordings of memory that has moved are not replayed.
#[test]
fn recordings_follow_memory_that_moves() {
    if common::cuda::device().is_none() {
        return;
    }
    let network = common::tiny("resnet18");
    let builder = Explainer::with_network(network).maps(Maps::Plain).size(33).overlay(true).device(Device::Cuda(0));
    let mut one = builder.clone().build().expect("an explainer");
    for round in 0..3 {
        for (h, w, format) in [
            (40, 50, PixelFormat::Rgb),
            (90, 70, PixelFormat::Bgr),
            (40, 50, PixelFormat::Rgb),
            (33, 33, PixelFormat::Gray),
            (120, 100, PixelFormat::Rgba),
        ] {
            let pixels = Random(7).bytes(h * w * format.bytes());
            let frame = Frame::new(&pixels, h, w, w * format.bytes(), format).expect("a frame");
            let mut fresh = builder.clone().build().expect("an explainer");
            let [want, got] = [&mut fresh, &mut one].map(|e| bits(&e.explain(&frame, &Target::Top(1)).expect("a map")));
            assert!(want == got, "round {round}, {w}×{h} {format:?}");
        }
    }
}

/// What was recorded over one frame is not replayed over another that came without being kept.
#[test]
fn recordings_follow_frames_that_were_not_kept() {
    let Some(mut backend) = common::cuda::backend(&graph()) else { return };
    let (h, w) = (12, 10);
    let slot = |offset, len, dtype| Slot { offset, len, lanes: 1, dtype, scope: Scope::Shared };
    let [x, range] = [slot(0, 6, Dtype::F32), slot(ALIGN, 2, Dtype::F32)];
    let y = slot(2 * ALIGN, h * w * 3, Dtype::U8);
    let (source, level) = ([0.0, 0.0, h as f64, w as f64], Level::Layer);
    let instr = Instr::Overlay { size: (2, 3), photo: (h, w), source, level, x, range, y };
    backend.reserve(y.offset + y.bytes(1)).expect("memory");
    let plan = GridPlan::whole(h, w);
    let steps = vec![Step { node: "overlay".into(), instr }];
    let program = backend.prepare(steps, tables(&plan, (1, 1), Weighting::One)).expect("memory");
    // A map that says nothing leaves the photo as it is.
    [x, range].iter().for_each(|slot| backend.write(slot, &vec![0; slot.bytes(1)]).expect("write"));
    let working = Working::new((h, w), Fit::None, 1).expect("a working image");
    let [first, other] = [1, 2].map(|seed| common::picture(h, w, seed));
    let opaque: Vec<u8> = other.as_chunks::<3>().0.iter().flat_map(|[r, g, b]| [*r, *g, *b, 255]).collect();
    let small = Frame::rgb(&first, h, w).expect("a frame");
    let large = Frame::new(&opaque, h, w, w * 4, PixelFormat::Rgba).expect("a frame");
    let mut recording = Recording::default();
    for (frame, expected, keep) in
        [&[(small, &first, true); 3][..], &[(large, &other, false), (large, &other, true)]].concat()
    {
        backend.show(&frame, &working, keep).expect("room for the picture");
        if keep {
            let pass = Pass { program: &program, steps: 0..1, samples: 0..1 };
            backend.explain(&[pass], &mut recording, &mut |_| ()).expect("an overlay");
            let mut found = vec![0; y.bytes(1)];
            backend.read(&mut [(y, &mut found)]).expect("read");
            assert!(found == *expected, "another photo");
        }
    }
}

/// Values that 16 bits cannot hold are an error that names the node, also where the results look well.
#[test]
fn overflow_names_the_node() {
    if common::cuda::device().is_none() {
        return;
    }
    // Of a chain of matrix products too, whose library turns what is no number into 0.
    for (model, layer, node) in [
        ("resnet18", "layer2.0.conv1.weight", "layer2.0.bn1"),
        ("resnet50", "layer3.1.conv1.weight", "layer3.1.bn1"),
        ("vgg11", "classifier.0.weight", "classifier.0"),
    ] {
        let mut tensors = common::tensors(model, common::CLASSES, common::NARROWING);
        let (_, _, values) = tensors.iter_mut().find(|t| t.0 == layer).expect("a layer");
        values.iter_mut().for_each(|v| *v *= 6e4);
        let network = common::network(&tensors);
        let builder = Explainer::with_network(network).maps(Maps::Plain).fit(Fit::None);
        let pixels = common::picture(40, 40, 1);
        let frame = Frame::rgb(&pixels, 40, 40).expect("a frame");
        let mut cpu = builder.clone().device(Device::Cpu).build().expect("an explainer");
        cpu.explain(&frame, &Target::Top(1)).expect("32 bits hold it");
        let mut gpu = builder.device(Device::Cuda(0)).build().expect("an explainer");
        for _ in 0..3 {
            let message = gpu.explain(&frame, &Target::Top(1)).expect_err("an overflow").to_string();
            assert!(message.contains(node), "{model}: {message}");
        }
    }
}

/// Precisions that a device does not have, and devices that are not there.
#[test]
fn settings_that_no_device_has() {
    use ucag::Precision;

    if common::cuda::device().is_none() {
        return;
    }
    let build = |device, precision: Option<Precision>| {
        let mut builder = Explainer::with_network(common::tiny("resnet18")).device(device);
        if let Some(precision) = precision {
            builder = builder.precision(precision);
        }
        builder.build().map(|e| (e.device(), e.precision()))
    };
    let refused = |device, precision| build(device, precision).expect_err("a senseless setting").to_string();
    let message = refused(Device::Cuda(0), Some(Precision::F32));
    assert!(message.contains("cuda:0") && message.contains("f16") && message.contains("f32"), "{message}");
    assert!(refused(Device::Cpu, Some(Precision::F16)).contains("cpu stores activations in f32"));
    let message = refused(Device::Cuda(99), None);
    assert!(message.contains("cuda:99") && message.contains("below"), "{message}");
    assert_eq!(build(Device::Auto, None).ok(), Some((Device::Cuda(0), Precision::F16)));
    assert_eq!(build(Device::Auto, Some(Precision::F32)).ok(), Some((Device::Cpu, Precision::F32)));
}
