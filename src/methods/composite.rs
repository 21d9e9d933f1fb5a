//! Relevance by rules that the user writes down: `first=flat, conv=gamma:0.1, layer4.*=epsilon`, a comma or a line
//! between two. On the left stands a kind of layer or the name of nodes, on the right a rule with its number, if any.

use super::{Job, RawMap, Settings, lrp};
use crate::engine::{Bounds, Composite, EPS, Rule, Writer, is_pointwise, stabilised};
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Network, Preprocess};
use crate::net::{Graph, NodeId, Op};

/// Sees whether the rules make sense for the network.
pub(super) fn check(network: &Network, settings: &Settings, _: NodeId) -> Result<()> {
    read(&network.graph, &network.preprocess, settings).map(|_| ())
}

pub(super) fn composite(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    match read(w.graph, &job.preprocess, job.settings) {
        Ok(composite) => lrp::relevance(w, job, &composite),
        Err(error) => unreachable!("rules are checked before: {error}"),
    }
}

/// Kinds of layer for which there can be a rule.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layer {
    First,
    Conv,
    Pointwise,
    Linear,
    Relu,
    MaxPool,
    AvgPool,
    Add,
}

const LAYERS: [(&str, Layer); 8] = [
    ("first", Layer::First),
    ("conv", Layer::Conv),
    ("pointwise", Layer::Pointwise),
    ("linear", Layer::Linear),
    ("relu", Layer::Relu),
    ("maxpool", Layer::MaxPool),
    ("avgpool", Layer::AvgPool),
    ("add", Layer::Add),
];

/// How rules are written.
const RULES: &str = "gradient, pass, norm[:eps], epsilon[:eps], z-plus, alpha-beta[:alpha], gamma[:gamma], box, w2, \
                     flat, main-only or skip-only";

impl Layer {
    fn of(graph: &Graph, id: NodeId) -> Option<Self> {
        let node = graph.node(id);
        Some(match &node.op {
            Op::Conv { .. } if node.inputs == [NodeId(0)] => Self::First,
            Op::Conv { window, .. } if is_pointwise(window) => Self::Pointwise,
            Op::Conv { .. } => Self::Conv,
            Op::Linear { .. } => Self::Linear,
            Op::Relu => Self::Relu,
            Op::MaxPool(_) => Self::MaxPool,
            Op::AvgPool(_) => Self::AvgPool,
            Op::Add => Self::Add,
            Op::Input | Op::Flatten => return None,
        })
    }

    fn takes(self, rule: Rule) -> bool {
        match rule {
            Rule::Gradient => true,
            Rule::Pass => matches!(self, Self::Relu | Self::Add),
            Rule::Share(_) => matches!(self, Self::MaxPool | Self::AvgPool | Self::Add),
            Rule::Only(_) => self == Self::Add,
            Rule::Box(_) => self == Self::First,
            _ => matches!(self, Self::First | Self::Conv | Self::Pointwise | Self::Linear),
        }
    }
}

/// The rules of the settings. Kinds of layer without one have that of EpsilonPlus.
fn read(graph: &Graph, preprocess: &Preprocess, settings: &Settings) -> Result<Composite> {
    let (mut named, mut kinds) = (vec![], vec![]);
    let lines = settings.text("rules").lines().map(|line| line.split('#').next().unwrap_or_default());
    for entry in lines.flat_map(|line| line.split(',')).map(str::trim).filter(|entry| !entry.is_empty()) {
        let Some((pattern, text)) = entry.split_once('=').map(|(pattern, text)| (pattern.trim(), text.trim())) else {
            return Err(problem(format!("expected `layer=rule`, found `{entry}`")));
        };
        let rule = rule(text, lrp::colours(preprocess)).map_err(problem)?;
        let unfit = |what: String| problem(format!("`{entry}`: {what} takes no rule `{text}`"));
        if let Some((name, kind)) = LAYERS.iter().find(|(name, _)| *name == pattern) {
            if !kind.takes(rule) {
                return Err(unfit(format!("a layer of kind `{name}`")));
            }
            kinds.push((*kind, rule));
            continue;
        }
        let nodes = nodes(graph, pattern)?;
        let takes = |id: &NodeId| Layer::of(graph, *id).is_some_and(|kind| kind.takes(rule));
        let before = named.len();
        named.extend(nodes.iter().filter(|id| takes(id)).map(|id| (*id, rule)));
        if named.len() == before {
            let names: Vec<&str> = nodes.iter().map(|id| graph.node(*id).name.as_str()).collect();
            return Err(unfit(names.join(", ")));
        }
    }
    let base = lrp::zennit(settings, None, Rule::ZPlus);
    let of = |kind| kinds.iter().find(|(known, _)| *known == kind).map(|(_, rule)| *rule);
    Ok(Composite {
        named,
        first: of(Layer::First),
        pointwise: of(Layer::Pointwise),
        conv: of(Layer::Conv).unwrap_or(base.conv),
        linear: of(Layer::Linear).unwrap_or(base.linear),
        relu: of(Layer::Relu).unwrap_or(base.relu),
        max_pool: of(Layer::MaxPool).unwrap_or(base.max_pool),
        avg_pool: of(Layer::AvgPool).unwrap_or(base.avg_pool),
        add: of(Layer::Add).unwrap_or(base.add),
        ..base
    })
}

fn problem(problem: String) -> Error {
    ErrorKind::Setting { method: "lrp-composite", key: "rules".into(), problem }.into()
}

/// A rule and its number, which has a default.
fn rule(text: &str, colours: Bounds) -> std::result::Result<Rule, String> {
    let (name, given) = match text.split_once(':') {
        Some((name, number)) => (name.trim(), Some(number.trim())),
        None => (text, None),
    };
    let number = |default: f32, least: f32| match given {
        None => Ok(default),
        Some(given) => {
            let number = given.parse().ok().filter(|v: &f32| v.is_finite() && *v >= least);
            number.ok_or_else(|| format!("`{text}`: expected a number of {least} or more, found `{given}`"))
        }
    };
    let rule = match name {
        "norm" => return Ok(Rule::Share(stabilised(number(EPS, 0.0)?))),
        "epsilon" => return Ok(Rule::Epsilon(number(EPS, 0.0)?)),
        "alpha-beta" => return Ok(Rule::AlphaBeta(number(2.0, 1.0)?)),
        "gamma" => return Ok(Rule::Gamma(number(0.25, 0.0)?)),
        "gradient" => Rule::Gradient,
        "pass" => Rule::Pass,
        "z-plus" => Rule::ZPlus,
        "box" => Rule::Box(colours),
        "w2" => Rule::WSquare,
        "flat" => Rule::Flat,
        "main-only" => Rule::Only(0),
        "skip-only" => Rule::Only(1),
        _ => return Err(format!("expected {RULES}, found `{text}`")),
    };
    given.map_or(Ok(rule), |given| Err(format!("`{text}`: expected no number, found `{given}`")))
}

/// The nodes that a name or a pattern with `*` fits.
fn nodes(graph: &Graph, pattern: &str) -> Result<Vec<NodeId>> {
    let fits = |i: &NodeId| fits(pattern, &graph.node(*i).name);
    let found: Vec<NodeId> = (0..graph.nodes().len()).map(NodeId).filter(fits).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    // A block, or nothing: then the error lists what is near.
    let kinds = || LAYERS.map(|(name, _)| name).join(", ");
    let layer = graph.layer(pattern).map_err(|e| problem(format!("expected a kind ({}) or a layer: {e}", kinds())))?;
    Ok(vec![layer])
}

/// Whether a name is `pattern`, in which `*` stands for any text.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut rest) = name.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = tail.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}
