//! Maps that read several layers, several resolutions or the patches of a convolution: each against its definition in
//! `f64`, and the errors of layers that do not fit.

mod common;

use std::sync::Arc;

use common::oracle::Oracle;
use common::reference::{bicubic, bilinear};
use common::rig::{Picture, Set, raw_maps_set};
use common::tolerance;
use ucag::net::{Graph, NodeId, Op, Shape};
use ucag::{Device, Explainer, Fit, Frame, Maps, Target};

const CLASSES: [usize; 2] = [5, 2];

fn minmax(map: &[f64]) -> Vec<f64> {
    let (low, high) = map.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    map.iter().map(|v| if high > low { (v - low) / (high - low) } else { 0.0 }).collect()
}

/// Channel by channel, `[pixels, channels]` at another size.
fn resized(x: &[f64], s: Shape, to: (usize, usize)) -> Vec<f64> {
    let planes: Vec<Vec<f64>> = (0..s.c).map(|c| x.iter().skip(c).step_by(s.c).copied().collect()).collect();
    let at = |i: usize| (i / s.c / to.1, i / s.c % to.1);
    (0..to.0 * to.1 * s.c).map(|i| bilinear(&planes[i % s.c], (s.h, s.w), to, at(i))).collect()
}

fn shape(graph: &Graph, size: (usize, usize), layer: NodeId) -> Shape {
    graph.shapes(size.0, size.1).expect("shapes")[layer.0]
}

/// The network run on CAMERAS' input for a resolution (`methods.md` 6.7), which scales with the picture.
fn at_resolution<'g>(graph: &'g Graph, picture: &Picture, r: usize) -> (Oracle<'g>, (usize, usize)) {
    let ((h, w), input) = (picture.size, picture.normalised());
    let side = |n: usize| (n as f64 * (224.0 + 100.0 * r as f64) / 224.0).round() as usize;
    let (rows, cols) = (side(h), side(w));
    let position = |d: usize, from: usize, to: usize| (d as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let value = |i: usize| {
        let (y, x, c) = (i / 3 / cols, i / 3 % cols, i % 3);
        bicubic(|row, col| input[(row * w + col) * 3 + c], (h, w), (position(y, h, rows), position(x, w, cols)))
    };
    let scaled: Vec<f64> = (0..rows * cols * 3).map(value).collect();
    (Oracle::new(graph, (rows, cols), &scaled), (rows, cols))
}

/// CAMERAS of some resolutions.
fn cameras(graph: &Graph, picture: &Picture, class: usize, layer: NodeId, resolutions: &[usize]) -> Vec<f64> {
    let (h, w) = picture.size;
    let channels = shape(graph, (h, w), layer).c;
    let mut sums = [vec![0.0; h * w * channels], vec![0.0; h * w * channels]];
    for r in resolutions {
        let (oracle, size) = at_resolution(graph, picture, *r);
        let seen = shape(graph, size, layer);
        for (sum, x) in sums.iter_mut().zip([&oracle.values[layer.0], &oracle.gradient(class)[layer.0]]) {
            sum.iter_mut().zip(resized(x, seen, (h, w))).for_each(|(s, x)| *s += x / resolutions.len() as f64);
        }
    }
    let products: Vec<f64> = sums[0].iter().zip(&sums[1]).map(|(a, g)| a * g).collect();
    minmax(&products.chunks_exact(channels).map(|pixel| pixel.iter().sum::<f64>().max(0.0)).collect::<Vec<_>>())
}

#[test]
fn cameras_agrees_with_its_definition() {
    for (model, layer, size, resolutions) in [
        ("resnet18", "layer4", (45, 38), 8),
        ("resnet50", "layer3", (41, 37), 3),
        ("vgg11", "features.10", (40, 33), 4),
        ("vgg11_bn", "features.27", (35, 46), 2),
    ] {
        let graph = common::tiny_graph(model);
        let (layer, picture) = (graph.layer(layer).expect("a layer"), Picture::new(size.0, size.1, 1));
        let set: Set<'_> = ("cameras", &[("resolutions", &resolutions.to_string())]);
        let found = raw_maps_set(&graph, &picture, &CLASSES, set, layer, true);
        let all: Vec<usize> = (0..resolutions).collect();
        let expected: Vec<f64> =
            CLASSES.iter().flat_map(|class| cameras(&graph, &picture, *class, layer, &all)).collect();
        common::assert_nmse(&format!("{model}, {resolutions} resolutions"), &found, &expected, tolerance::GRADIENT);
    }
}

/// Resolutions at which another class is on top are left out where that is asked for.
#[test]
fn cameras_of_resolutions_that_agree() {
    for (model, layer, bias) in [("resnet18", "layer4", "fc.bias"), ("vgg11", "features.10", "classifier.6.bias")] {
        let picture = Picture::new(40, 33, 1);
        let mut tensors = common::tensors(model, common::CLASSES, common::NARROWING);
        let mut move_logits = |by: &[f64]| {
            let biases = tensors.iter_mut().filter(|(key, ..)| key == bias).flat_map(|(_, _, values)| values);
            biases.zip(by).for_each(|(b, by)| *b += *by as f32);
            let graph = Arc::new(common::network(&tensors).graph);
            let logits: Vec<_> = (0..5).map(|r| at_resolution(&graph, &picture, r).0.logits().to_vec()).collect();
            (graph, logits)
        };
        // The logits less their mean, so that the top class is not the same throughout; then the first one's top class is
        // raised until the next resolution has it, too.
        let (_, logits) = move_logits(&[0.0; common::CLASSES]);
        let mean = (0..common::CLASSES).map(|k| -logits.iter().map(|y| y[k]).sum::<f64>() / 5.0);
        let (_, logits) = move_logits(&mean.collect::<Vec<_>>());
        let top = |y: &[f64]| (0..y.len()).max_by(|a, b| y[*a].total_cmp(&y[*b])).expect("a class");
        let first = top(&logits[0]);
        let mut short: Vec<f64> = logits[1..].iter().map(|y| y[top(y)] - y[first]).collect();
        short.sort_by(f64::total_cmp);
        let mut raised = [0.0; common::CLASSES];
        raised[first] = short[0].midpoint(short[1]);
        let (graph, logits) = move_logits(&raised);
        let agreeing: Vec<usize> = (0..5).filter(|r| top(&logits[*r]) == first).collect();
        assert!(agreeing[0] == 0 && (2..5).contains(&agreeing.len()), "{model}: {agreeing:?} agree");

        let layer = graph.layer(layer).expect("a layer");
        let set: Set<'_> = ("cameras", &[("resolutions", "5"), ("agreeing", "true")]);
        let found = raw_maps_set(&graph, &picture, &CLASSES, set, layer, true);
        let map = |class: &usize| cameras(&graph, &picture, *class, layer, &agreeing);
        let expected: Vec<f64> = CLASSES.iter().flat_map(map).collect();
        common::assert_nmse(&format!("{model}: {agreeing:?}"), &found, &expected, tolerance::GRADIENT);
    }
}

/// LayerCAM of several layers (`methods.md` 6.5).
fn fused(graph: &Graph, picture: &Picture, class: usize, layers: &[NodeId]) -> Vec<f64> {
    let oracle = Oracle::new(graph, picture.size, &picture.normalised());
    let gradient = oracle.gradient(class);
    let shapes: Vec<Shape> = layers.iter().map(|layer| shape(graph, picture.size, *layer)).collect();
    let size = (shapes.iter().map(|s| s.h).max().expect("a layer"), shapes.iter().map(|s| s.w).max().expect("a layer"));
    let mut map = vec![f64::MIN; size.0 * size.1];
    for (layer, s) in layers.iter().zip(shapes) {
        let terms: Vec<f64> =
            oracle.values[layer.0].iter().zip(&gradient[layer.0]).map(|(a, g)| a * g.max(0.0)).collect();
        let sums: Vec<f64> = terms.chunks_exact(s.c).map(|pixel| pixel.iter().sum::<f64>().max(0.0)).collect();
        let scaled: Vec<f64> = minmax(&sums).iter().map(|v| (2.0 * v).tanh()).collect();
        let scaled = resized(&scaled, Shape { c: 1, ..s }, size);
        map.iter_mut().zip(scaled).for_each(|(m, v)| *m = m.max(v));
    }
    map
}

/// Layers in one line and in different branches, by their names and by their blocks'.
#[test]
fn fused_layer_cam_agrees_with_its_definition() {
    for (model, names, size) in [
        ("resnet18", "layer1,layer2,layer3,layer4", (45, 38)),
        ("resnet50", "layer3.0.bn2, layer2.0.downsample.1, layer4", (41, 37)),
        ("vgg11", "features.19, features.10,features.4", (40, 33)),
        ("vgg11_bn", "features.27", (35, 46)),
    ] {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 2);
        let layers: Vec<NodeId> = names.split(',').map(|name| graph.layer(name.trim()).expect("a layer")).collect();
        let set: Set<'_> = ("layer-cam", &[("layers", names)]);
        let found = raw_maps_set(&graph, &picture, &CLASSES, set, graph.output(), true);
        let expected: Vec<f64> = CLASSES.iter().flat_map(|class| fused(&graph, &picture, *class, &layers)).collect();
        common::assert_nmse(&format!("{model}: {names}"), &found, &expected, tolerance::GRADIENT);
        assert!(found.iter().all(|v| (0.0..=1.0).contains(v)), "{model}: {names}");
    }
}

/// NormGrad of a convolution: `‖unfold(x)_u‖·‖g_u‖`, patch by patch (`methods.md` 8).
fn kernel_norm_grad(graph: &Graph, picture: &Picture, class: usize, layer: NodeId) -> Vec<f64> {
    let oracle = Oracle::new(graph, picture.size, &picture.normalised());
    let node = graph.node(layer);
    let Op::Conv { window, param } = &node.op else { panic!("{} is no convolution", node.name) };
    let [from, to] = [node.inputs[0], layer].map(|id| shape(graph, picture.size, id));
    let (x, gradient) = (&oracle.values[node.inputs[0].0], oracle.gradient(class));
    // The gradient at the convolution's own result, before the batch norm that the graph has folded into it.
    let scale = graph.param(*param).norm.as_ref().map(|norm| &norm.scale);
    let own = |(c, g): (usize, &f64)| g * scale.map_or(1.0, |scale| f64::from(scale[c]));
    let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let patch = |oy: usize, ox: usize| {
        let mut values = vec![];
        for (ky, kx) in (0..window.kernel[0]).flat_map(|ky| (0..window.kernel[1]).map(move |kx| (ky, kx))) {
            let y = (oy * window.stride[0] + ky).checked_sub(window.pad[0]).filter(|y| *y < from.h);
            let x_at = (ox * window.stride[1] + kx).checked_sub(window.pad[1]).filter(|x| *x < from.w);
            if let (Some(y), Some(x_at)) = (y, x_at) {
                values.extend_from_slice(&x[(y * from.w + x_at) * from.c..][..from.c]);
            }
        }
        values
    };
    let pixels = gradient[layer.0].chunks_exact(to.c).enumerate();
    let own = |g: &[f64]| g.iter().enumerate().map(own).collect::<Vec<_>>();
    pixels.map(|(u, g)| norm(&patch(u / to.w, u % to.w)) * norm(&own(g))).collect()
}

#[test]
fn norm_grad_of_a_convolution_agrees_with_its_definition() {
    for (model, layer) in [
        ("resnet18", "bn1"),
        ("resnet18", "layer3.0.bn1"),
        ("resnet50", "layer4.0.downsample.1"),
        ("vgg11", "features.18"),
        ("vgg11_bn", "features.5"),
    ] {
        let graph = common::tiny_graph(model);
        let (layer_id, picture) = (graph.layer(layer).expect("a layer"), Picture::new(45, 50, 3));
        let found = raw_maps_set(&graph, &picture, &CLASSES, ("norm-grad", &[("form", "kernel")]), layer_id, true);
        let defined = |class: &usize| kernel_norm_grad(&graph, &picture, *class, layer_id);
        let expected: Vec<f64> = CLASSES.iter().flat_map(defined).collect();
        common::assert_nmse(&format!("{model} at {layer}"), &found, &expected, tolerance::GRADIENT);
    }
}

/// CAMERAS' map has the input's size but shows a layer: its plain map is what the method gives, and UCAG takes it.
#[test]
fn maps_of_a_layer_may_have_the_size_of_the_input() {
    let network = common::tiny("resnet18");
    let picture = Picture::new(45, 38, 4);
    let frame = Frame::rgb(&picture.pixels, 45, 38).expect("a frame");
    let layer = network.graph.layer("layer3").expect("a layer");
    let expected = {
        let graph = Arc::new(network.graph.clone());
        raw_maps_set(&graph, &picture, &[4], ("cameras", &[("resolutions", "2")]), layer, true)
    };
    let builder = Explainer::with_network(network).method("cameras").set("resolutions", "2").layer("layer3");
    let builder = builder.fit(Fit::None).maps(Maps::Plain).device(Device::Cpu).threads(2);
    let explanation = builder.build().and_then(|mut e| e.explain(&frame, &Target::Classes(vec![4])));
    assert_eq!(explanation.expect("an explanation").classes[0].map().data, expected);
}

#[test]
fn layers_that_do_not_fit_are_named() {
    let build = |method: &str, key: &str, value: &str, layer: Option<&str>| {
        let builder = Explainer::with_network(common::tiny("resnet18")).method(method).set(key, value);
        let builder = layer.into_iter().fold(builder, |builder, layer| builder.layer(layer));
        builder.device(Device::Cpu).threads(1).build().map(|_| ()).map_err(|e| e.to_string())
    };
    let error = |method, key, value, layer| build(method, key, value, layer).expect_err("a layer that does not fit");
    let kernel = error("norm-grad", "form", "kernel", None);
    let expected =
        "setting `form` of norm-grad: `kernel` expects a layer that is a convolution, found `layer4.1.relu2`";
    assert_eq!(kernel, expected);
    assert!(build("norm-grad", "form", "kernel", Some("layer4.1.bn2")).is_ok());
    let unknown = error("layer-cam", "layers", "layer3,layer9", None);
    assert!(unknown.starts_with("unknown layer `layer9`; known: "), "{unknown}");
    let single = error("layer-cam", "layers", "layer3,fc", None);
    assert_eq!(single, "layer `fc`: expected a layer with rows and columns, found one of single values");
    assert!(build("layer-cam", "layers", " layer3 , layer4,", None).is_ok());
}
