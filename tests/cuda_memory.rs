//! Frame after frame, the device's memory stays as it is. Alone in its program, so that nothing else allocates meanwhile.
#![cfg(feature = "cuda")]

mod common;

use ucag::{Device, Explainer, Fit, Frame, Grid, Target};

#[test]
fn device_memory_is_flat() {
    if common::cuda::device().is_none() {
        return;
    }
    let grid = Grid { n: 2, rho: Some(0.7), alpha: 1.0, ..Grid::default() };
    let builder = Explainer::with_network(common::tiny("resnet18")).grid(grid).fit(Fit::None).overlay(true);
    let mut explainer = builder.device(Device::Cuda(0)).build().expect("an explainer");
    let free = || ucag::gpus().expect("a GPU")[0].memory.1;
    let before = free();
    let mut pixels = common::picture(40, 40, 0);
    let mut seen = vec![];
    for i in 0..200 {
        pixels[i % 7] ^= 1;
        let frame = Frame::rgb(&pixels, 40, 40).expect("a frame");
        explainer.explain(&frame, &Target::Top(2)).expect("an explanation");
        seen.push(free());
    }
    println!("{} bytes after the second frame", before - seen[1]);
    assert!(seen[1..].iter().all(|f| *f == seen[1]), "{seen:?}");
}
