//! All methods, one row each.

use super::{
    Family, LayerUse, Level, Method, Sign, agf, averaged, cam, cameras, composite, contrast, excitation, full_grad,
    fused, gradient, lrp, norm_grad, rap, rsp,
};

/// What class activation maps have in common.
const CAM: Method = Method {
    name: "grad-cam",
    family: Family::Cam,
    level: Level::Layer,
    sign: Sign::Signed,
    linear: true,
    passes: "forward, backward to the layer (none for pooled linear heads)",
    source: "Selvaraju et al., ICCV 2017",
    layer: LayerUse::Last,
    networks: "all",
    settings: &[],
    check: |_, _, _| Ok(()),
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
    settings: &[gradient::REDUCE],
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
    settings: lrp::ZENNIT,
    write: lrp::epsilon_plus,
    ..CAM
};

/// What relevance by the rules of set A has in common.
const SET_A: Method = Method {
    name: "lrp",
    source: "Bach et al., PLoS ONE 2015; Nam et al., AAAI 2020, as baseline",
    settings: &[],
    write: lrp::alpha1,
    ..RELEVANCE
};

/// What excitation backprop has in common.
const EXCITATION: Method = Method {
    name: "mwp",
    family: Family::Excitation,
    linear: false,
    passes: "forward, excitation to the layer",
    source: "Zhang et al., ECCV 2016",
    layer: LayerUse::Earlier,
    settings: excitation::SETTINGS,
    write: excitation::mwp,
    ..CAM
};

/// All methods.
pub const METHODS: &[Method] = &[
    CAM,
    RELEVANCE,
    Method {
        name: "grad-cam++",
        linear: false,
        sign: Sign::AsLayer,
        source: "Chattopadhay et al., WACV 2018",
        settings: &[cam::FORM],
        write: cam::grad_cam_plus_plus,
        ..CAM
    },
    Method { name: "xgrad-cam", source: "Fu et al., BMVC 2020", write: cam::xgrad_cam, ..CAM },
    Method { name: "hires-cam", source: "Draelos and Carin, arXiv 2011.08891, 2020", write: cam::hires_cam, ..CAM },
    Method {
        name: "layer-cam",
        sign: Sign::AsLayer,
        source: "Jiang et al., IEEE TIP 2021",
        settings: &[fused::LAYERS],
        check: fused::check,
        write: cam::layer_cam,
        ..CAM
    },
    Method {
        name: "wgrad-cam",
        source: "Zhang et al., AAAI 2021, as ucag reads its abstract",
        settings: &[cam::MIN_MAX],
        write: cam::wgrad_cam,
        ..CAM
    },
    Method {
        name: "norm-grad",
        sign: Sign::NotNegative,
        passes: "forward, backward to the layer",
        source: "Rebuffi et al., CVPR 2020",
        settings: &[norm_grad::FORM],
        check: norm_grad::check,
        write: norm_grad::norm_grad,
        ..CAM
    },
    Method {
        name: "cameras",
        linear: false,
        sign: Sign::NotNegative,
        passes: "forward, backward to the layer, at each resolution",
        source: "Jalwana et al., CVPR 2021",
        settings: &[cameras::RESOLUTIONS, cameras::AGREEING],
        write: cameras::cameras,
        ..CAM
    },
    GRADIENT,
    Method { name: "guided", source: "Springenberg et al., ICLR workshop 2015", write: gradient::guided, ..GRADIENT },
    Method { name: "deconv", source: "Zeiler and Fergus, ECCV 2014", write: gradient::deconv, ..GRADIENT },
    Method {
        name: "input-x-gradient",
        sign: Sign::Signed,
        source: "Shrikumar et al., arXiv 1605.01713, 2016",
        settings: &[],
        write: gradient::input_times_gradient,
        ..GRADIENT
    },
    Method {
        name: "smoothgrad",
        passes: "forward, backward to the input, for each draw",
        source: "Smilkov et al., arXiv 1706.03825, 2017",
        settings: averaged::DRAWS,
        write: averaged::smooth_grad,
        ..GRADIENT
    },
    Method {
        name: "integrated-gradients",
        sign: Sign::Signed,
        passes: "forward, backward to the input, for each step",
        source: "Sundararajan et al., ICML 2017",
        settings: averaged::STEPS,
        write: averaged::integrated_gradients,
        ..GRADIENT
    },
    Method {
        name: "full-grad",
        linear: false,
        passes: "forward, backward to the input",
        source: "Srinivas and Fleuret, NeurIPS 2019",
        settings: &[],
        write: full_grad::full_grad,
        ..GRADIENT
    },
    Method {
        name: "lrp-epsilon-plus-flat",
        source: "Kohlbrenner et al., IJCNN 2020; Lapuschkin et al., Nature Communications 2019",
        write: lrp::epsilon_plus_flat,
        ..RELEVANCE
    },
    Method { name: "lrp-epsilon-alpha2-beta1", write: lrp::epsilon_alpha2_beta1, ..RELEVANCE },
    Method {
        name: "lrp-epsilon-alpha2-beta1-flat",
        source: "Kohlbrenner et al., IJCNN 2020; Lapuschkin et al., Nature Communications 2019",
        write: lrp::epsilon_alpha2_beta1_flat,
        ..RELEVANCE
    },
    Method {
        name: "lrp-epsilon-gamma-box",
        source: "Montavon et al., LNCS 11700, 2019",
        settings: lrp::WITH_GAMMA,
        write: lrp::epsilon_gamma_box,
        ..RELEVANCE
    },
    Method {
        name: "lrp-composite",
        source: "Montavon et al., LNCS 11700, 2019",
        settings: lrp::WITH_RULES,
        check: composite::check,
        write: composite::composite,
        ..RELEVANCE
    },
    SET_A,
    Method { name: "lrp-ab", write: lrp::alpha2, ..SET_A },
    Method {
        name: "clrp",
        passes: "forward, relevance to the input twice (two passes each)",
        source: "Gu et al., ACCV 2018",
        settings: contrast::CLRP,
        write: contrast::clrp,
        ..SET_A
    },
    Method {
        name: "sglrp",
        linear: false,
        passes: "forward, relevance to the input twice (two passes each)",
        source: "Iwana et al., ICCV workshops 2019",
        write: contrast::sglrp,
        ..SET_A
    },
    EXCITATION,
    Method {
        name: "cmwp",
        sign: Sign::NotNegative,
        passes: "forward, excitation to the layer, from the class twice",
        write: excitation::cmwp,
        ..EXCITATION
    },
    Method {
        name: "rap",
        source: "Nam et al., AAAI 2020; Gur et al., AAAI 2021",
        settings: rap::SETTINGS,
        write: rap::rap,
        ..SET_A
    },
    Method {
        name: "rsp",
        linear: false,
        passes: "forward, backward to the layer, relevance from there to the input (correlations: three passes)",
        source: "Nam et al., AAAI 2021",
        layer: LayerUse::Last,
        write: rsp::rsp,
        ..SET_A
    },
    Method {
        name: "agf",
        linear: false,
        passes: "forward, backward, class map to the input (about four passes)",
        source: "Gur et al., AAAI 2021",
        settings: agf::SETTINGS,
        write: agf::agf,
        ..SET_A
    },
];
