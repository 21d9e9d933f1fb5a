//! ResNet (He et al., CVPR 2016), as torchvision and timm build and name it.

use super::Kind;
use crate::error::{ErrorKind, Result};
use crate::net::{AvgPool, Builder, Metadata, NodeId, Tensors, Window};

/// Reads the block counts off the tensor names.
pub(super) fn recognise(tensors: &Tensors) -> Option<Kind> {
    let has = |key: String| tensors.shape(&key).is_some();
    if !has("conv1.weight".into()) || !has("layer1.0.conv1.weight".into()) {
        return None;
    }
    let count = |stage| (0..).take_while(|block| has(format!("layer{stage}.{block}.conv1.weight"))).count();
    let blocks = [count(1), count(2), count(3), count(4)];
    Some(Kind::Resnet { blocks, bottleneck: has("layer1.0.conv3.weight".into()) })
}

/// Stem, four stages, global average pool, one linear layer.
///
/// Metadata `ucag.variant` = `stride-in-1x1` puts a bottleneck's stride into its first convolution, as in the paper's
/// own weights; torchvision puts it into the 3×3.
pub(super) fn build(b: &mut Builder<'_>, blocks: [usize; 4], bottleneck: bool, metadata: &Metadata) -> Result<()> {
    let early_stride = match metadata.get("ucag.variant").map(String::as_str) {
        None | Some("torchvision") => false,
        Some("stride-in-1x1") => true,
        Some(other) => {
            let problem = format!("expected `torchvision` or `stride-in-1x1` for a ResNet, found `{other}`");
            return Err(ErrorKind::Option { option: "metadata ucag.variant", problem }.into());
        }
    };
    let x = b.conv_bn(b.input(), ["conv1", "bn1"], 64, Window::square(7, 2, 3), false)?;
    let x = b.relu(x, "relu");
    let mut x = b.max_pool(x, "maxpool", Window::square(3, 2, 1));
    for (stage, count) in blocks.into_iter().enumerate() {
        for block in 0..count {
            let name = format!("layer{}.{block}", stage + 1);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let width = 64 << stage;
            x = if bottleneck {
                bottleneck_block(b, x, &name, width, stride, early_stride)?
            } else {
                basic_block(b, x, &name, width, stride)?
            };
            b.alias(name, x);
        }
        b.alias(format!("layer{}", stage + 1), x);
    }
    let x = b.avg_pool(x, "avgpool", AvgPool::Adaptive(1, 1));
    let x = b.flatten(x, "flatten", 1);
    b.linear(x, "fc", super::CLASSES)?;
    Ok(())
}

fn basic_block(b: &mut Builder<'_>, x: NodeId, name: &str, width: usize, stride: usize) -> Result<NodeId> {
    let part = |part: &str| format!("{name}.{part}");
    let skip = shortcut(b, x, name, width, stride)?;
    let y = b.conv_bn(x, [&part("conv1"), &part("bn1")], width, Window::square(3, stride, 1), false)?;
    let y = b.relu(y, &part("relu1"));
    let y = b.conv_bn(y, [&part("conv2"), &part("bn2")], width, Window::square(3, 1, 1), false)?;
    let sum = b.add(y, skip, &part("add"), &part("conv2"));
    Ok(b.relu(sum, &part("relu2")))
}

fn bottleneck_block(
    b: &mut Builder<'_>,
    x: NodeId,
    name: &str,
    width: usize,
    stride: usize,
    early_stride: bool,
) -> Result<NodeId> {
    let part = |part: &str| format!("{name}.{part}");
    let skip = shortcut(b, x, name, 4 * width, stride)?;
    let (first, second) = if early_stride { (stride, 1) } else { (1, stride) };
    let y = b.conv_bn(x, [&part("conv1"), &part("bn1")], width, Window::square(1, first, 0), false)?;
    let y = b.relu(y, &part("relu1"));
    let y = b.conv_bn(y, [&part("conv2"), &part("bn2")], width, Window::square(3, second, 1), false)?;
    let y = b.relu(y, &part("relu2"));
    let y = b.conv_bn(y, [&part("conv3"), &part("bn3")], 4 * width, Window::square(1, 1, 0), false)?;
    let sum = b.add(y, skip, &part("add"), &part("conv3"));
    Ok(b.relu(sum, &part("relu3")))
}

/// The identity, or a strided 1×1 convolution at the start of a stage whose width or size changes. It comes before the other
/// branch, so that on the way down it comes last: its stride leaves most pixels as the other branch has left them.
fn shortcut(b: &mut Builder<'_>, x: NodeId, name: &str, width: usize, stride: usize) -> Result<NodeId> {
    let starts_stage = name.ends_with(".0");
    let keeps_width = width == 64 && stride == 1;
    if !starts_stage || keeps_width {
        return Ok(x);
    }
    let part = |part: &str| format!("{name}.downsample.{part}");
    b.conv_bn(x, [&part("0"), &part("1")], width, Window::square(1, stride, 0), false)
}
