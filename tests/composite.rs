//! Rules that the user writes down: what they mean, and what is said of those that make no sense.

mod common;

use std::sync::Arc;

use common::rig::{Picture, Set, raw_maps_set, walk};
use ucag::backend::Divisor;
use ucag::engine::{Composite, EPS, Rule};
use ucag::net::{Graph, NodeId, Op};
use ucag::{Device, Explainer};

/// The map by these rules.
fn map(graph: &Arc<Graph>, picture: &Picture, method: Set<'_>) -> Vec<f32> {
    raw_maps_set(graph, picture, &[3], method, graph.output(), true)
}

/// Written down rule by rule, a composite is that of the same name.
#[test]
fn known_composites_can_be_written_down() {
    let cases: [(Set<'_>, &str); 7] = [
        (("lrp-epsilon-plus", &[]), ""),
        (
            ("lrp-epsilon-plus", &[]),
            "conv=z-plus,linear=epsilon:1e-6\nrelu=pass, maxpool=gradient,avgpool=norm,add=norm",
        ),
        (("lrp-epsilon-plus-flat", &[]), " first = flat # and nothing else, really\n\n"),
        (("lrp-epsilon-alpha2-beta1", &[]), "conv=alpha-beta"),
        (("lrp-epsilon-alpha2-beta1-flat", &[]), "first=flat,conv=alpha-beta:2"),
        (("lrp-epsilon-gamma-box", &[]), "first=box,conv=gamma:0.25"),
        (
            ("lrp-epsilon-gamma-box", &[("gamma", "0.5"), ("epsilon", "0.1")]),
            "first=box,conv=gamma:0.5,linear=epsilon:0.1",
        ),
    ];
    for model in ["resnet18", "vgg11_bn"] {
        let (graph, picture) = (common::tiny_graph(model), Picture::new(41, 45, 1));
        for ((method, set), rules) in cases {
            let expected = map(&graph, &picture, (method, set));
            let found = map(&graph, &picture, ("lrp-composite", &[("rules", rules)]));
            assert!(found == expected, "{model}, {method} as {rules:?}");
            let set = [set, &[("biases", "false")]].concat();
            let found = map(&graph, &picture, ("lrp-composite", &[("rules", rules), ("biases", "false")]));
            assert!(found == map(&graph, &picture, (method, &set)), "{model}, {method} without biases");
            assert!(found != expected, "{model}, {method}: biases do not matter");
        }
    }
}

/// A composite of the engine, summed over the colours as a method does.
fn summed(graph: &Arc<Graph>, picture: &Picture, composite: &Composite) -> Vec<f32> {
    let relevance = walk(graph, picture, &[3], NodeId(0), composite, true);
    relevance.chunks_exact(3).map(|pixel| pixel.iter().sum()).collect()
}

/// Names go before kinds, and what stands first before what follows; of the nodes that a pattern fits those have the rule
/// that take it.
#[test]
fn patterns_name_nodes() {
    let (graph, picture) = (common::tiny_graph("resnet50"), Picture::new(45, 39, 2));
    let fitting = |fits: &dyn Fn(&str, &Op) -> bool, rule| {
        let nodes = graph.nodes().iter().enumerate().filter(move |(_, node)| fits(&node.name, &node.op));
        nodes.map(|(i, _)| (NodeId(i), rule)).collect::<Vec<_>>()
    };
    let conv = |op: &Op| matches!(op, Op::Conv { .. });
    let base = Composite::epsilon_and(Rule::ZPlus);
    let named = |named| Composite { named, ..base.clone() };
    let cases = [
        ("layer3.0.bn2=gamma", named(fitting(&|name, _| name == "layer3.0.bn2", Rule::Gamma(0.25)))),
        ("layer4.*=w2", named(fitting(&|name, op| name.starts_with("layer4.") && conv(op), Rule::WSquare))),
        (
            "*.1.*2=flat",
            named(fitting(&|name, op| name.contains(".1.") && name.ends_with("bn2") && conv(op), Rule::Flat)),
        ),
        ("conv=w2, *3*=epsilon:1, *3.*=flat", {
            let named = fitting(&|name, op| name.contains('3') && conv(op), Rule::Epsilon(1.0));
            Composite { named, conv: Rule::WSquare, ..base.clone() }
        }),
        (
            "pointwise=epsilon,first=w2",
            Composite { pointwise: Some(Rule::Epsilon(EPS)), first: Some(Rule::WSquare), ..base.clone() },
        ),
        ("layer3=gradient", named(fitting(&|name, _| name == "layer3.5.relu3", Rule::Gradient))),
        ("add=skip-only", Composite { add: Rule::Only(1), ..base.clone() }),
        ("add=main-only", Composite { add: Rule::Only(0), ..base.clone() }),
        ("add=pass", Composite { add: Rule::Pass, ..base.clone() }),
        ("add=norm:0, avgpool=gradient", {
            Composite { add: Rule::Share(Divisor::NonZero), avg_pool: Rule::Gradient, ..base.clone() }
        }),
    ];
    let plain = summed(&graph, &picture, &base);
    for (rules, composite) in cases {
        let found = map(&graph, &picture, ("lrp-composite", &[("rules", rules)]));
        let expected = summed(&graph, &picture, &composite);
        let error = common::max_error(&common::to_f64(&found), &common::to_f64(&expected));
        assert!(error < common::tolerance::SAME_MAP, "{rules}: maps differ by {error:.1e}");
        // A rectifier hands on what the gradient would: what arrives where it is closed is zero already.
        assert!(rules == "layer3=gradient" || found != plain, "{rules} changes nothing");
    }
}

/// Rules in a file.
#[test]
fn rules_can_lie_in_a_file() {
    let (graph, picture) = (common::tiny_graph("vgg11"), Picture::new(41, 45, 3));
    let path = std::env::temp_dir().join(format!("ucag-rules-{}", std::process::id()));
    std::fs::write(&path, "# the usual ones\nfirst = flat   # at the input\nfeatures.1*=gamma:0.1\r\n\nconv=z-plus\n")
        .unwrap();
    let file = format!("@{}", path.display());
    let found = map(&graph, &picture, ("lrp-composite", &[("rules", &file)]));
    std::fs::remove_file(&path).unwrap();
    let text = "first=flat, features.1*=gamma:0.1";
    assert!(found == map(&graph, &picture, ("lrp-composite", &[("rules", text)])));
    let error = problem("vgg11", &file);
    assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
}

/// What building an explainer says of rules.
fn problem(model: &str, rules: &str) -> String {
    let builder = Explainer::with_network(common::tiny(model)).method("lrp-composite").device(Device::Cpu).threads(1);
    match builder.set("rules", rules).build() {
        Ok(_) => "nothing".into(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn rules_that_make_no_sense_are_explained() {
    const RULES: &str = "gradient, pass, norm[:eps], epsilon[:eps], z-plus, alpha-beta[:alpha], gamma[:gamma], box, w2, \
                         flat, main-only or skip-only";
    let layers =
        "expected a kind (first, conv, pointwise, linear, relu, maxpool, avgpool, add) or a layer: unknown layer";
    let cases = [
        ("conv", "expected `layer=rule`, found `conv`".to_string()),
        ("conv=", format!("expected {RULES}, found ``")),
        ("conv=lrp", format!("expected {RULES}, found `lrp`")),
        ("conv=Flat", format!("expected {RULES}, found `Flat`")),
        ("conv=gamma:-1", "`gamma:-1`: expected a number of 0 or more, found `-1`".into()),
        ("conv=gamma:inf", "`gamma:inf`: expected a number of 0 or more, found `inf`".into()),
        ("conv=gamma:", "`gamma:`: expected a number of 0 or more, found ``".into()),
        ("conv=alpha-beta:0.5", "`alpha-beta:0.5`: expected a number of 1 or more, found `0.5`".into()),
        ("conv=flat:1", "`flat:1`: expected no number, found `1`".into()),
        ("conv=norm", "`conv=norm`: a layer of kind `conv` takes no rule `norm`".into()),
        ("linear=box", "`linear=box`: a layer of kind `linear` takes no rule `box`".into()),
        ("relu=z-plus", "`relu=z-plus`: a layer of kind `relu` takes no rule `z-plus`".into()),
        ("maxpool=pass", "`maxpool=pass`: a layer of kind `maxpool` takes no rule `pass`".into()),
        ("features.2=flat", "`features.2=flat`: features.2 takes no rule `flat`".into()),
        ("features.1*=box", "`features.1*=box`: features.1, features.10, features.11".into()),
        ("flatten=flat", "`flatten=flat`: flatten takes no rule `flat`".into()),
        ("features.99=flat", format!("{layers} `features.99`; known: features.0, features.1,")),
        ("*.99=flat", format!("{layers} `*.99`; known: input, features.0,")),
        ("convs=flat", format!("{layers} `convs`; known: input, features.0,")),
    ];
    for (rules, expected) in cases {
        let (error, expected) = (problem("vgg11", rules), format!("setting `rules` of lrp-composite: {expected}"));
        assert!(error.starts_with(&expected), "{rules}: {error}\nexpected: {expected}");
    }
    assert_eq!(
        problem("vgg11", "first=flat, conv=z-plus, linear=epsilon:1e-6, features.1*=gamma:0.25, add=norm"),
        "nothing"
    );
    assert_eq!(problem("resnet50", "layer1.*=gamma, add=norm"), "nothing");
    let folded = "layer `layer1.0.conv1`: batch norm is folded into this convolution";
    assert!(problem("resnet50", "layer1.0.conv1=flat").contains(folded));
}
