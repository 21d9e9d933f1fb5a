//! Names of ImageNet-1k's classes, in torchvision's order and wording.

pub(super) fn labels() -> Vec<String> {
    include_str!("imagenet.txt").lines().map(String::from).collect()
}
