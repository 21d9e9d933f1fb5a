//! VGG (Simonyan and Zisserman, ICLR 2015), with and without batch norm, as torchvision and timm build and name it.
//!
//! Heads: adaptive pool and any number of linear layers (torchvision has three), global average pool and one or more
//! linear layers, or timm's convolutional head. Which one is read off the tensors; metadata `ucag.head` says what
//! tensors cannot.

use super::Kind;
use crate::error::{ErrorKind, Result};
use crate::net::{AvgPool, Builder, Metadata, NodeId, Tensors, Window};

/// Reads depth and batch norm off the tensor names.
pub(super) fn recognise(tensors: &Tensors) -> Option<Kind> {
    let convs = |t: &Tensors| {
        let is_conv = |key: &str| {
            let index = key.strip_prefix("features.").and_then(|k| k.strip_suffix(".weight"));
            index.is_some_and(|i| i.parse::<usize>().is_ok())
        };
        t.infos().iter().filter(|(key, info)| is_conv(key) && info.shape.len() == 4).count()
    };
    if tensors.shape("features.0.weight").is_none_or(|s| s.len() != 4 || s[2..] != [3, 3]) {
        return None;
    }
    let batch_norm = tensors.shape("features.1.running_mean").is_some();
    Some(Kind::Vgg { convs: [convs(tensors), 0, 0, 0, 0], batch_norm })
}

/// Five stages of 3×3 convolutions, each followed by a max pool, and a head.
pub(super) fn build(
    b: &mut Builder<'_>,
    convs: [usize; 5],
    batch_norm: bool,
    metadata: &Metadata,
    tensors: Option<&Tensors>,
) -> Result<()> {
    let head = Head::choose(metadata, tensors)?;
    let mut x = b.input();
    let mut index = 0;
    for (stage, count) in convs.into_iter().enumerate() {
        for _ in 0..count {
            let (width, window) = (64 << stage.min(3), Window::square(3, 1, 1));
            let name = |i: usize| format!("features.{i}");
            x = if batch_norm {
                b.conv_bn(x, [&name(index), &name(index + 1)], width, window, true)?
            } else {
                b.conv(x, &name(index), width, window)?
            };
            index += 1 + usize::from(batch_norm);
            x = b.relu(x, &name(index));
            index += 1;
        }
        if stage < 4 || head != Head::GapLinear {
            x = b.max_pool(x, &format!("features.{index}"), Window::square(2, 2, 0));
        }
        index += 1;
    }
    match head {
        Head::TimmConv => timm_head(b, x),
        Head::Linear => linear_head(b, x, tensors, None),
        Head::GapLinear | Head::PoolGapLinear => linear_head(b, x, tensors, Some(1)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// Last max pool, adaptive pool to as many pixels as the first linear layer takes, linear layers.
    Linear,
    /// No last max pool, global average pool, linear layers.
    GapLinear,
    /// Last max pool, global average pool, linear layers.
    PoolGapLinear,
    /// Last max pool, 7×7 and 1×1 convolutions, global average pool, one linear layer.
    TimmConv,
}

impl Head {
    fn choose(metadata: &Metadata, tensors: Option<&Tensors>) -> Result<Self> {
        match metadata.get("ucag.head").map(String::as_str) {
            Some("linear") => Ok(Self::Linear),
            Some("gap-linear") => Ok(Self::GapLinear),
            Some("pool-gap-linear") => Ok(Self::PoolGapLinear),
            Some(other) => {
                let problem =
                    format!("expected `linear`, `gap-linear` or `pool-gap-linear` for a VGG, found `{other}`");
                Err(ErrorKind::Option { option: "metadata ucag.head", problem }.into())
            }
            None if tensors.is_some_and(|t| t.shape("pre_logits.fc1.weight").is_some()) => Ok(Self::TimmConv),
            None => Ok(Self::Linear),
        }
    }
}

/// Linear layers with rectifiers between them, over `side`² pixels or as many as the first one takes.
fn linear_head(b: &mut Builder<'_>, x: NodeId, tensors: Option<&Tensors>, side: Option<usize>) -> Result<()> {
    const TORCHVISION: usize = 7;
    let keys = linear_keys(tensors);
    let channels = b.channels(x);
    let inputs = tensors.and_then(|t| t.shape(&format!("{}.weight", keys[0]))).and_then(|s| s.get(1).copied());
    let fits = |n: usize| move |side: &usize| side * side * channels == n;
    let side = side.or_else(|| inputs.and_then(|n| (1..=64).find(fits(n)))).unwrap_or(TORCHVISION);
    let x = b.avg_pool(x, "avgpool", AvgPool::Adaptive(side, side));
    let mut x = b.flatten(x, "flatten", side * side);
    for (i, key) in keys.iter().enumerate() {
        let last = i + 1 == keys.len();
        x = b.linear(x, key, if last { super::CLASSES } else { 4096 })?;
        if !last {
            x = b.relu(x, &relu_name(key));
        }
    }
    Ok(())
}

/// `classifier.N` in order, or a plain `classifier`; torchvision's three where there is no file.
fn linear_keys(tensors: Option<&Tensors>) -> Vec<String> {
    let torchvision = || [0, 3, 6].map(|i| format!("classifier.{i}")).to_vec();
    let Some(tensors) = tensors else { return torchvision() };
    if tensors.shape("classifier.weight").is_some() {
        return vec!["classifier".into()];
    }
    let index = |key: &String| key.strip_prefix("classifier.")?.strip_suffix(".weight")?.parse::<usize>().ok();
    let mut found: Vec<usize> = tensors.infos().keys().filter_map(index).collect();
    found.sort_unstable();
    if found.is_empty() { torchvision() } else { found.iter().map(|i| format!("classifier.{i}")).collect() }
}

/// The module after a linear layer: `classifier.0` is followed by `classifier.1`.
fn relu_name(key: &str) -> String {
    match key.rsplit_once('.').and_then(|(stem, i)| Some((stem, i.parse::<usize>().ok()?))) {
        Some((stem, i)) => format!("{stem}.{}", i + 1),
        None => format!("{key}.relu"),
    }
}

/// timm's head runs the fully connected layers as convolutions and pools afterwards. Inputs below 224 pixels, whose maps
/// are smaller than the 7×7 kernel, are refused.
fn timm_head(b: &mut Builder<'_>, x: NodeId) -> Result<()> {
    let x = b.conv(x, "pre_logits.fc1", 4096, Window::square(7, 1, 0))?;
    let x = b.relu(x, "pre_logits.act1");
    let x = b.conv(x, "pre_logits.fc2", 4096, Window::square(1, 1, 0))?;
    let x = b.relu(x, "pre_logits.act2");
    let x = b.avg_pool(x, "head.global_pool", AvgPool::Adaptive(1, 1));
    let x = b.flatten(x, "head.flatten", 1);
    b.linear(x, "head.fc", super::CLASSES)?;
    Ok(())
}
