//! `models`, `methods` and `inspect`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use ucag::methods::{LayerUse, Level, METHODS, Method, Setting};
use ucag::models::{MODELS, Model};
use ucag::net::Tensors;
use ucag::{Device, Network};

use super::FINE;
use super::output::Printer;

/// Lists the networks, or the layers of one.
pub fn models(name: Option<&str>, printer: &mut Printer) -> Result<u8> {
    // Layers do not depend on the width, so narrow networks serve.
    const NARROW: usize = 64;
    let blueprint = |model: &Model| model.blueprint(1000, NARROW).map(|(graph, _)| graph);
    let Some(name) = name else {
        printer.line(&format!("{:<12} {:>6}  default layer", "network", "layers"))?;
        for model in MODELS {
            let layers = blueprint(model)?.layer_names().len();
            printer.line(&format!("{:<12} {layers:>6}  {}", model.name, model.default_layer))?;
        }
        printer.line("`ucag-fast models NETWORK` lists a network's layers.")?;
        return Ok(FINE);
    };
    let model = Model::named(name)?;
    let earlier: Vec<&str> = METHODS.iter().filter(|m| m.layer == LayerUse::Earlier).map(|m| m.name).collect();
    for layer in blueprint(model)?.layer_names() {
        let whose = match layer {
            _ if layer == model.default_layer => "  (default)".into(),
            _ if layer == model.earlier_layer => format!("  (default of {})", earlier.join(", ")),
            _ => String::new(),
        };
        printer.line(&format!("{layer}{whose}"))?;
    }
    Ok(FINE)
}

/// Lists all methods, or one.
pub fn methods(name: Option<&str>, printer: &mut Printer) -> Result<u8> {
    let chosen = name.map(Method::named).transpose()?;
    let width = METHODS.iter().map(|m| m.name.len()).max().unwrap_or(0);
    printer.line(&format!("{:<width$}  {:<10}  {:<6}  {:<8}  sign", "method", "family", "map of", "networks"))?;
    for method in METHODS.iter().filter(|m| chosen.is_none_or(|chosen| chosen == *m)) {
        let level = match method.level {
            Level::Layer => "layer",
            Level::Input => "input",
        };
        let (family, sign) = (method.family.to_string(), method.sign);
        let name = method.name;
        printer.line(&format!("{name:<width$}  {family:<10}  {level:<6}  {:<8}  {sign}", method.networks))?;
        let mut more = vec![("passes", method.passes.to_string()), ("paper", method.source.to_string())];
        if method.layer != LayerUse::None {
            more.push(("layer", method.layer.to_string()));
        }
        let setting = |s: &Setting| {
            let (key, kind) = (s.key, s.kind);
            let default = kind.default().to_string();
            ("--set", format!("{key}={default}  {}; {kind}", s.help))
        };
        more.extend(method.settings.iter().map(setting));
        more.iter().try_for_each(|(what, text)| printer.line(&format!("{:<width$}  {what:<6}  {text}", "")))?;
    }
    Ok(FINE)
}

/// Lists what can be computed on. A GPU that cannot be used comes with the reason.
pub fn devices(printer: &mut Printer) -> Result<u8> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    printer.line(&format!("cpu     f32, {threads} threads"))?;
    let gpus = match ucag::gpus() {
        Ok(gpus) => gpus,
        Err(problem) => {
            printer.line(&format!("no GPU  {problem}"))?;
            return Ok(FINE);
        }
    };
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    for gpu in gpus {
        let device = Device::Cuda(gpu.number);
        let ((major, minor), (total, free)) = (gpu.capability, gpu.memory);
        match &gpu.problem {
            None => printer.line(&format!(
                "{device}  f16, {}, compute capability {major}.{minor}, {:.1} of {:.1} GiB free",
                gpu.name,
                gib(free),
                gib(total)
            ))?,
            Some(problem) => printer.line(&format!("{device}  not usable: {problem}"))?,
        }
    }
    Ok(FINE)
}

/// Describes a safetensors file; fails when it could not be explained with.
pub fn inspect(path: &Path, model: Option<&str>, printer: &mut Printer) -> Result<u8> {
    let model = model.map(Model::named).transpose()?;
    let tensors = Tensors::open(path)?;
    let mut dtypes: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for info in tensors.infos().values() {
        let entry = dtypes.entry(&info.dtype_name).or_default();
        entry.0 += 1;
        entry.1 += info.shape.iter().product::<usize>();
    }
    let size = tensors.file_len() as f64 / f64::from(1 << 20);
    printer.line(&format!("file        {}, {size:.1} MiB, {} tensors", path.display(), tensors.infos().len()))?;
    for (name, (count, values)) in dtypes {
        printer.line(&format!("  {name:<9} {count} tensors, {values} values"))?;
    }
    for (key, value) in tensors.metadata() {
        printer.line(&format!("metadata    {key} = {}", short(value)))?;
    }
    let looks_like = Model::recognise(&tensors);
    match looks_like {
        Some(model) => printer.line(&format!("looks like  {}", model.name))?,
        None => printer.line("looks like  no network that ucag knows")?,
    }
    let network = Network::from_tensors(&tensors, model).map_err(|error| anyhow!(error))?;
    let classes = network.graph.classes();
    let named = match network.labels.as_slice() {
        [] => "without names".into(),
        labels => format!("{}, …", labels[..labels.len().min(4)].join(", ")),
    };
    let layer = &network.graph.node(network.layer).name;
    let preprocess = network.preprocess;
    printer.line(&format!("network     {}, layer {layer}", network.model.name))?;
    printer.line(&format!("classes     {classes}: {named}"))?;
    printer.line(&format!(
        "pictures    {} pixels, mean {:?}, std {:?}",
        preprocess.size, preprocess.mean, preprocess.std
    ))?;
    printer.line("fits: it can be explained with")?;
    Ok(FINE)
}

/// The beginning of a long text, on one line.
fn short(text: &str) -> String {
    const MOST: usize = 100;
    let line: String = text.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MOST).is_some() { line + "…" } else { line }
}
