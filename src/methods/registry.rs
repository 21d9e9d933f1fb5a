//! All methods, one row each.

use super::{Family, LayerUse, Level, Method, Sign, cam, gradient, lrp};

/// What class activation maps have in common.
const CAM: Method = Method {
    name: "grad-cam",
    family: Family::Cam,
    level: Level::Layer,
    sign: Sign::Signed,
    passes: "forward, backward to the layer (none for pooled linear heads)",
    source: "Selvaraju et al., ICCV 2017",
    layer: LayerUse::Last,
    networks: "all",
    settings: &[],
    check: |_, _| Ok(()),
    write: cam::grad_cam,
};

/// What gradients at the input have in common.
const GRADIENT: Method = Method {
    name: "gradient",
    family: Family::Gradient,
    level: Level::Input,
    sign: Sign::NotNegative,
    passes: "forward, backward to the input",
    source: "Simonyan et al., ICLR workshop 2014",
    layer: LayerUse::None,
    write: gradient::gradient,
    ..CAM
};

/// What relevance methods have in common.
const RELEVANCE: Method = Method {
    name: "lrp-epsilon-plus",
    family: Family::Relevance,
    level: Level::Input,
    sign: Sign::Signed,
    passes: "forward, relevance to the input (two passes)",
    source: "Bach et al., PLoS ONE 2015; Kohlbrenner et al., IJCNN 2020",
    layer: LayerUse::None,
    write: lrp::epsilon_plus,
    ..CAM
};

/// All methods.
pub const METHODS: &[Method] = &[
    CAM,
    RELEVANCE,
    Method {
        name: "grad-cam++",
        sign: Sign::AsLayer,
        source: "Chattopadhay et al., WACV 2018",
        write: cam::grad_cam_plus_plus,
        ..CAM
    },
    Method { name: "xgrad-cam", source: "Fu et al., BMVC 2020", write: cam::xgrad_cam, ..CAM },
    Method { name: "hires-cam", source: "Draelos and Carin, arXiv 2011.08891, 2020", write: cam::hires_cam, ..CAM },
    Method {
        name: "layer-cam",
        sign: Sign::AsLayer,
        source: "Jiang et al., IEEE TIP 2021",
        write: cam::layer_cam,
        ..CAM
    },
    Method {
        name: "wgrad-cam",
        source: "Zhang et al., AAAI 2021, as ucag reads its abstract",
        write: cam::wgrad_cam,
        ..CAM
    },
    GRADIENT,
    Method { name: "guided", source: "Springenberg et al., ICLR workshop 2015", write: gradient::guided, ..GRADIENT },
    Method { name: "deconv", source: "Zeiler and Fergus, ECCV 2014", write: gradient::deconv, ..GRADIENT },
    Method {
        name: "input-x-gradient",
        sign: Sign::Signed,
        source: "Shrikumar et al., arXiv 1605.01713, 2016",
        write: gradient::input_times_gradient,
        ..GRADIENT
    },
];
