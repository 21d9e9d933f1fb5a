//! `bench`: the time from a frame in memory to its map.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use ucag::io::Photo;
use ucag::{Explainer, Explanation, Floor, Frame, Target};

use super::FINE;
use super::args::Bench;
use super::output::Printer;
use super::report::ms;
use super::setup;

/// What is said where the device is the stand-in of `tests/emulator`.
const EMULATED: &str = "this device is emulated: its times say nothing about a GPU";

/// Side of the picture that is made where no photo is given.
const SIDE: usize = 224;

/// All that was measured; the line of `--json`.
#[derive(Serialize)]
struct Report {
    schema: u32,
    version: &'static str,
    device: Device,
    network: &'static str,
    methods: Vec<&'static str>,
    frame: [usize; 2],
    plain: bool,
    batch: usize,
    frames: usize,
    first_frame_ms: f64,
    latency_ms: Latency,
    stages: Vec<Stage>,
    layers: Vec<Layer>,
    memory_bytes: u64,
    note: Option<String>,
}

#[derive(Serialize)]
struct Device {
    device: String,
    name: String,
    precision: String,
    /// Measured ceilings: multiplications and additions, and bytes read and written, a second.
    flops: f64,
    bytes: f64,
}

/// Milliseconds from a frame in memory to its maps in memory.
#[derive(Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
    mean: f64,
}

/// A part of an explanation: median of its time, and the time below which it cannot be done on this device.
#[derive(Serialize)]
struct Stage {
    name: &'static str,
    ms: f64,
    floor_ms: Option<f64>,
    gflop: f64,
    megabytes: f64,
    /// What the floor is made of: `flops` or `bytes`.
    bound: Option<&'static str>,
}

/// One step of all batches together: its time, and the time below which it cannot be done.
#[derive(Serialize)]
struct Layer {
    stage: &'static str,
    node: String,
    operation: String,
    ms: f64,
    floor_ms: f64,
    gflop: f64,
    megabytes: f64,
}

/// Measures and prints.
pub fn run(args: &Bench, printer: &mut Printer) -> Result<u8> {
    let photo = args.photo.as_ref().map(Photo::open).transpose()?;
    let made = picture();
    let frame = match &photo {
        Some(photo) => photo.frame(),
        None => Frame::rgb(&made, SIDE, SIDE)?,
    };
    let (builder, _) = setup::builder(&args.engine, false)?;
    let mut explainer = builder.overlay(args.overlay).build()?;
    let mut explain = || -> Result<(f64, Explanation)> {
        let start = Instant::now();
        let explanation = explainer.explain(&frame, &Target::Top(1))?;
        Ok((ms(start.elapsed()), explanation))
    };
    let (first, _) = explain()?;
    for _ in 0..args.warmup {
        explain()?;
    }
    let timed = (0..args.frames).map(|_| explain()).collect::<Result<Vec<_>>>()?;
    let report = report(args, &mut explainer, frame.size(), first, &timed)?;
    if args.json {
        printer.line(&serde_json::to_string(&report)?)?;
    } else {
        report.lines().iter().try_for_each(|line| printer.line(line))?;
    }
    Ok(FINE)
}

/// A picture with something in it, the same every time.
fn picture() -> Vec<u8> {
    let value = |i: usize| {
        let (y, x, c) = ((i / 3 / SIDE) as f32, (i / 3 % SIDE) as f32, (i % 3) as f32);
        (127.0 + 60.0 * (0.11 * y + c).sin() + 60.0 * (0.07 * x - 0.05 * y + 2.0 * c).cos()) as u8
    };
    (0..SIDE * SIDE * 3).map(value).collect()
}

fn report(
    args: &Bench,
    explainer: &mut Explainer,
    (height, width): (usize, usize),
    first_frame_ms: f64,
    timed: &[(f64, Explanation)],
) -> Result<Report> {
    let floors = explainer.floors()?;
    let timed_layers = if args.layers { explainer.layers()? } else { vec![] };
    let layers = timed_layers.into_iter().map(|layer| Layer {
        stage: layer.stage,
        node: layer.node,
        operation: layer.operation,
        ms: ms(layer.time),
        floor_ms: floors.as_ref().map_or(0.0, |f| 1e3 * f.ceilings.floor(&layer.work)),
        gflop: layer.work.flops / 1e9,
        megabytes: layer.work.bytes / 1e6,
    });
    let layers = layers.collect();
    let emulated = explainer.device_name().contains("emulat");
    let (flops, bytes) = floors.as_ref().map_or((0.0, 0.0), |f| (f.ceilings.flops, f.ceilings.bytes));
    let stage = |name, time: &dyn Fn(&Explanation) -> Duration, floor: Option<Floor>| {
        let times = timed.iter().map(|(_, explanation)| ms(time(explanation)));
        let floor = floor.filter(|f| !f.time.is_zero());
        let work = floor.unwrap_or_default().work;
        Stage {
            name,
            ms: quantile(&sorted(times), 0.5),
            floor_ms: floor.map(|f| 1e3 * f.time.as_secs_f64()),
            gflop: work.flops / 1e9,
            megabytes: work.bytes / 1e6,
            bound: floor.map(|f| if 2 * f.arithmetic > f.time { "flops" } else { "bytes" }),
        }
    };
    let [whole, patches, fold] = floors.as_ref().map_or([None; 3], |f| f.stages.map(Some));
    let stages = vec![
        stage("resize", &|e| e.times.stages.resize, None),
        stage("whole", &|e| e.times.stages.whole, whole),
        stage("patches", &|e| e.times.stages.patches, patches),
        stage("fold", &|e| e.times.stages.fold, fold),
    ];
    let latencies = sorted(timed.iter().map(|(ms, _)| *ms));
    let at = |share| quantile(&latencies, share);
    let mean = latencies.iter().sum::<f64>() / latencies.len() as f64;
    Ok(Report {
        schema: 1,
        version: env!("CARGO_PKG_VERSION"),
        device: Device {
            device: explainer.device().to_string(),
            name: explainer.device_name(),
            precision: explainer.precision().to_string(),
            flops,
            bytes,
        },
        network: explainer.network().model.name,
        methods: explainer.methods().iter().map(|chosen| chosen.method.name).collect(),
        frame: [height, width],
        plain: args.engine.plain,
        batch: floors.map_or(0, |f| f.batch),
        frames: timed.len(),
        first_frame_ms,
        latency_ms: Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0), mean },
        stages,
        layers,
        memory_bytes: explainer.allocated(),
        note: explainer.note().or(emulated.then_some(EMULATED)).map(str::to_string),
    })
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The smallest value that at least this share of all values does not exceed.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

impl Report {
    fn lines(&self) -> Vec<String> {
        let Self { device, latency_ms: l, .. } = self;
        let grid = if self.plain { ", plain".into() } else { format!(", UCAG, batches of {}", self.batch) };
        let mut lines = vec![
            format!(
                "{} of {} on {} ({}), {}{grid}",
                self.methods.join(", "),
                self.network,
                device.device,
                device.name,
                device.precision
            ),
            format!(
                "{} frames of {}×{}, first {:.2} ms",
                self.frames, self.frame[1], self.frame[0], self.first_frame_ms
            ),
            format!(
                "latency in ms: p50 {:.2}, p90 {:.2}, p99 {:.2}, max {:.2}, mean {:.2}",
                l.p50, l.p90, l.p99, l.max, l.mean
            ),
            format!(
                "at best {:.2} TFLOP/s and {:.1} GB/s, measured; {:.1} MiB in use",
                device.flops / 1e12,
                device.bytes / 1e9,
                self.memory_bytes as f64 / f64::from(1 << 20)
            ),
            format!("{:<9}{:>11}{:>11}{:>9}{:>11}{:>11}", "stage", "ms", "floor ms", "ratio", "GFLOP", "MB"),
        ];
        lines.extend(self.stages.iter().map(|s| match s.floor_ms {
            Some(floor) => format!(
                "{:<9}{:>11.3}{floor:>11.3}{:>9.2}{:>11.2}{:>11.1}  {}",
                s.name,
                s.ms,
                s.ms / floor,
                s.gflop,
                s.megabytes,
                s.bound.unwrap_or_default()
            ),
            None => format!("{:<9}{:>11.3}", s.name, s.ms),
        }));
        if !self.layers.is_empty() {
            lines.push(format!(
                "{:<9}{:<34}{:<16}{:>11}{:>11}{:>9}{:>11}",
                "stage", "layer", "operation", "ms", "floor ms", "ratio", "GFLOP/s"
            ));
        }
        lines.extend(self.layers.iter().map(|l| {
            let (ratio, rate) = (l.ms / l.floor_ms, 1e3 * l.gflop / l.ms);
            format!(
                "{:<9}{:<34}{:<16}{:>11.3}{:>11.3}{ratio:>9.2}{rate:>11.1}",
                l.stage, l.node, l.operation, l.ms, l.floor_ms
            )
        }));
        lines.extend(self.note.clone());
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=10).map(f64::from).collect();
        let found = [0.5, 0.9, 0.99, 1.0].map(|share| quantile(&values, share));
        assert_eq!(found, [5.0, 9.0, 10.0, 10.0]);
        assert_eq!(quantile(&[7.0], 0.5), 7.0);
    }
}
