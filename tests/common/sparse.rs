//! A network in which sums of products are often sums of zeros beside others that are not.

use ucag::net::{AvgPool, Builder, Graph, Tensors, Window};

use super::Random;

/// Of the 16 channels that the 3×3 convolution `b` reads, the first one, which is seldom active, is alone in exciting it;
/// its bias keeps it active. What it reads is called `hidden`.
pub fn sparse(bias: f32) -> Graph {
    const WIDTH: usize = 16;
    let random = |kind: &str, n: usize| Random::named(kind, 1).units(n);
    let seldom = (0..WIDTH).map(|c| if c == 0 { -1.4 } else { 1.0 }).collect();
    let turned = |(i, w): (usize, f32)| if (i / 9).is_multiple_of(WIDTH) { w.abs() } else { -w.abs() / 20.0 };
    let tensors = [
        ("a.weight".into(), vec![WIDTH, 3, 1, 1], random("first", WIDTH * 3)),
        ("a.bias".into(), vec![WIDTH], seldom),
        (
            "b.weight".into(),
            vec![WIDTH, WIDTH, 3, 3],
            random("second", WIDTH * WIDTH * 9).into_iter().enumerate().map(turned).collect(),
        ),
        ("b.bias".into(), vec![WIDTH], vec![bias; WIDTH]),
        ("c.weight".into(), vec![super::CLASSES, WIDTH], random("third", super::CLASSES * WIDTH)),
        ("c.bias".into(), vec![super::CLASSES], random("fourth", super::CLASSES)),
    ];
    let tensors = Tensors::from_bytes("sparse", super::safetensors(&tensors, &[])).expect("a well-formed file");
    let mut b = Builder::new(Some(&tensors), |n| n);
    let input = b.input();
    let x = b.conv(input, "a", WIDTH, Window::square(1, 1, 0)).expect("a convolution");
    let x = b.relu(x, "hidden");
    let x = b.conv(x, "b", WIDTH, Window::square(3, 1, 1)).expect("a convolution");
    let x = b.relu(x, "relu");
    let x = b.avg_pool(x, "avgpool", AvgPool::Adaptive(1, 1));
    let x = b.flatten(x, "flatten", 1);
    b.linear(x, "c", super::CLASSES).expect("a linear layer");
    b.finish("sparse").expect("a fitting file").0
}
