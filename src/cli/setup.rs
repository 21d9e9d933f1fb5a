//! From options to an explainer.

use std::path::PathBuf;

use anyhow::{Context, Result};
use ucag::{Builder, Explainer, Grid, Maps, Mode};

use super::args::Engine;
use super::find;

/// A builder with the options' settings, and the weights file it will read. `both`: the plain map beside UCAG's.
pub fn builder(args: &Engine, both: bool) -> Result<(Builder, PathBuf)> {
    if let Some(threads) = args.threads {
        // For decoding and rendering; the engine has threads of its own and reports a senseless number.
        const MOST: usize = 1024;
        rayon::ThreadPoolBuilder::new().num_threads(threads.min(MOST)).build_global().context("threads")?;
    }
    let weights = find::weights(args.weights.as_deref())?;
    let mode = if args.grid_align { Mode::Aligned } else { args.mode.into() };
    let grid = Grid { mode, n: args.grid, rho: args.rho, alpha: args.alpha };
    let maps = match (args.plain, both) {
        (true, _) => Maps::Plain,
        (false, true) => Maps::Both,
        (false, false) => Maps::Ucag,
    };
    let mut builder = Explainer::builder(&weights).methods(&args.method).grid(grid).maps(maps);
    builder = builder.fit(args.resize.into()).device(args.device);
    for (key, value) in &args.set {
        builder = builder.set(key, value);
    }
    if args.no_shortcuts {
        builder = builder.sharing(false).winograd(false).closed_forms(false);
    }
    if let Some(model) = &args.model {
        builder = builder.model(model);
    }
    if let Some(path) = &args.labels {
        let text = std::fs::read_to_string(path).with_context(|| format!("labels {}", path.display()))?;
        builder = builder.labels(text.trim_end().lines().map(|line| line.trim().to_string()).collect());
    }
    if let Some(layer) = &args.layer {
        builder = builder.layer(layer);
    }
    if let Some(size) = args.size {
        builder = builder.size(size);
    }
    if let Some(precision) = args.precision {
        builder = builder.precision(precision.into());
    }
    if let Some(threads) = args.threads {
        builder = builder.threads(threads);
    }
    if let Some(memory) = args.memory {
        builder = builder.memory(memory);
    }
    if let Some(batch) = args.batch {
        builder = builder.batch(batch);
    }
    Ok((builder, weights))
}
