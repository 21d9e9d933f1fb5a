//! What overlapping patches have in common is computed once: the same maps, with less arithmetic.

mod common;

use ucag::grid::{Grid, Mode};
use ucag::models::MODELS;
use ucag::{Builder, Device, Explainer, Fit, Frame, Network, Target};

/// The map of the second class, and the arithmetic of all patches in FLOPs.
fn explain(
    network: Network,
    size: (usize, usize),
    grid: Grid,
    method: &str,
    sharing: bool,
    winograd: bool,
) -> (Vec<f32>, f64) {
    let pixels = common::picture(size.0, size.1, 5);
    let frame = Frame::rgb(&pixels, size.0, size.1).expect("a frame");
    let builder = Explainer::with_network(network).method(method).grid(grid).fit(Fit::None);
    let builder = builder.sharing(sharing).winograd(winograd);
    let mut explainer = builder.device(Device::Cpu).threads(2).build().expect("an explainer");
    let explanation = explainer.explain(&frame, &Target::Classes(vec![1])).expect("an explanation");
    let floors = explainer.floors().expect("floors").expect("a plan");
    (explanation.classes[0].map().data.clone(), floors.stages[1].work.flops)
}

/// Compares; returns the part of the arithmetic that is left.
fn check(model: &str, size: (usize, usize), grid: Grid, method: &str) -> f64 {
    let (found, less) = explain(common::tiny(model), size, grid, method, true, true);
    let (expected, all) = explain(common::tiny(model), size, grid, method, false, true);
    let error = common::max_error(&common::to_f64(&found), &common::to_f64(&expected));
    assert!(error < common::tolerance::SAME_MAP, "{method} of {model} at {size:?}: maps differ by {error:.1e}");
    less / all
}

/// A grid that steps 52 pixels of a scaled patch, 4·13: some of every network is shared.
#[test]
fn all_networks_share() {
    for model in MODELS {
        let left = check(model.name, (112, 112), Grid { n: 3, rho: Some(0.643), ..Grid::default() }, "grad-cam");
        let most = if model.name.starts_with("vgg") { 0.8 } else { 0.95 };
        assert!(left < most, "{}: {left:.2} of the arithmetic is left", model.name);
    }
}

/// Sizes, grids and layers for which more, less or nothing coincides.
#[test]
fn any_grid_gives_the_same_map() {
    let aligned = Grid { n: 3, rho: Some(0.5), alpha: 2.0, mode: Mode::Paper };
    for model in ["resnet18", "resnet50", "vgg11_bn"] {
        for (size, grid) in [
            ((96, 96), aligned),
            ((96, 130), aligned),
            ((97, 131), Grid::default()),
            ((120, 100), Grid { n: 4, alpha: 2.5, ..aligned }),
            ((100, 100), Grid { n: 1, rho: Some(1.0), ..aligned }),
            ((224, 224), Grid { mode: Mode::Release, ..Grid::default() }),
            ((97, 131), Grid { mode: Mode::Aligned, ..Grid::default() }),
        ] {
            let left = check(model, size, grid, "grad-cam");
            assert!(left <= 1.0, "{model} at {size:?}: {left}");
        }
    }
    for grid in [aligned, Grid { mode: Mode::Aligned, n: 4, ..Grid::default() }] {
        assert!(check("resnet18", (96, 99), grid, "grad-cam") < 0.95, "nothing is shared where it could be");
    }
}

/// Winograd's algorithm where it pays, and the sums as they are defined.
#[test]
fn winograd_changes_rounding_alone() {
    let pixels = common::picture(96, 96, 5);
    let frame = Frame::rgb(&pixels, 96, 96).expect("a frame");
    for model in ["resnet18", "vgg16"] {
        let map = |winograd: bool| {
            let network = common::network(&common::tensors(model, 10, 4));
            let builder = Explainer::with_network(network).method("grad-cam").winograd(winograd).size(96);
            let mut explainer = builder.device(Device::Cpu).build().expect("an explainer");
            let explanation = explainer.explain(&frame, &Target::Classes(vec![1])).expect("an explanation");
            explanation.classes[0].map().data.clone()
        };
        let (with, without) = (map(true), map(false));
        assert_ne!(with, without, "{model}: the switch does nothing");
        let error = common::max_error(&common::to_f64(&with), &common::to_f64(&without));
        assert!(error < common::tolerance::SAME_MAP, "{model}: maps differ by {error:.1e}");
    }
}

/// Methods that read values of early layers take them from what is shared, and the sums that they form of them, where layers
/// are so wide that it pays: not a bit changes where sums have one order.
#[test]
fn what_methods_read_is_shared_too() {
    let grid = Grid { n: 3, rho: Some(0.75), alpha: 2.0, mode: Mode::Paper };
    for method in ["gradient", "lrp-epsilon-plus", "lrp-ab", "cmwp", "rap"] {
        let [found, expected] = [true, false].map(|sharing| {
            let network = common::network(&common::tensors("vgg11_bn", common::CLASSES, 2));
            explain(network, (128, 128), grid, method, sharing, false)
        });
        assert!(found.0 == expected.0, "{method}: maps differ");
        assert!(found.1 < 0.97 * expected.1, "{method}: nothing is shared");
    }
}

/// What is shared decides about rounding: not batches, nor memory that suffices.
#[test]
fn batches_and_memory_change_no_bit() {
    let grid = Grid { n: 3, rho: Some(0.75), alpha: 2.0, mode: Mode::Paper };
    let pixels = common::picture(128, 128, 5);
    let frame = Frame::rgb(&pixels, 128, 128).expect("a frame");
    let map = |set: fn(Builder) -> Builder| {
        let network = common::network(&common::tensors("vgg11_bn", common::CLASSES, 2));
        let builder = Explainer::with_network(network).method("lrp-ab").grid(grid).fit(Fit::None);
        let mut explainer = set(builder.device(Device::Cpu)).build().expect("an explainer");
        let explanation = explainer.explain(&frame, &Target::Classes(vec![1])).expect("an explanation");
        explanation.classes[0].map().data.clone()
    };
    let expected = map(|builder| builder.threads(2));
    // Little more than the plan needs: less than twice what is kept for the method.
    assert!(map(|builder| builder.threads(3).batch(1).memory(41 << 20)) == expected, "less memory, smaller batches");
}

/// Methods that need values of early layers in each patch, and what max pooling chose there.
#[test]
fn what_is_asked_for_is_still_there() {
    let grid = Grid { n: 3, rho: Some(0.5), alpha: 2.0, mode: Mode::Paper };
    for method in ["lrp-epsilon-plus", "guided", "layer-cam", "full-grad"] {
        check("vgg11_bn", (96, 96), grid, method);
        check("resnet18", (96, 96), grid, method);
    }
}
