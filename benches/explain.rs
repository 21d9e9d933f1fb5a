//! Whole explanations on full-width networks with seeded random weights: decoded picture to map, warm.
//!
//! One sample of UCAG takes seconds, so samples are few; `ucag-fast` against peers is measured by `benches/peers/`.

#[path = "../tests/seeded/mod.rs"]
mod seeded;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ucag::{Device, Explainer, Frame, Maps, Network, Target};

fn network(name: &str) -> Network {
    seeded::network(name, &seeded::neutral(name), seeded::gain)
}

fn explain(c: &mut Criterion) {
    let pixels = seeded::picture(224, 224);
    let frame = Frame::rgb(&pixels, 224, 224).unwrap();
    let mut group = c.benchmark_group("explain");
    group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(20));
    for name in ["resnet18", "resnet50", "vgg16"] {
        let network = network(name);
        for (method, maps, label) in [
            ("grad-cam", Maps::Plain, "plain"),
            ("lrp-epsilon-plus", Maps::Plain, "plain"),
            ("grad-cam", Maps::Ucag, "ucag"),
        ] {
            let mut explainer =
                Explainer::with_network(network.clone()).method(method).maps(maps).device(Device::Cpu).build().unwrap();
            group.bench_function(format!("{name}/{method}/{label}"), |b| {
                b.iter(|| black_box(explainer.explain(&frame, &Target::Top(1)).unwrap()));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, explain);
criterion_main!(benches);
