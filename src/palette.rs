//! Two perceptually even palettes, computed in OKLab (Ottosson 2020) from a few control points.

use std::sync::LazyLock;

/// Colours of a palette; odd, so that a diverging one has a middle.
const STEPS: usize = 511;

static SEQUENTIAL: LazyLock<Vec<[u8; 3]>> = LazyLock::new(|| {
    // lightness, chroma, hue in degrees
    table(&[[0.17, 0.09, -75.0], [0.40, 0.17, -35.0], [0.62, 0.22, 25.0], [0.79, 0.17, 65.0], [0.96, 0.12, 105.0]])
});

static DIVERGING: LazyLock<Vec<[u8; 3]>> = LazyLock::new(|| {
    table(&[[0.42, 0.18, 262.0], [0.70, 0.12, 255.0], [0.96, 0.0, 250.0]])
        .into_iter()
        .step_by(2)
        .chain(table(&[[0.96, 0.0, 30.0], [0.70, 0.12, 30.0], [0.42, 0.18, 27.0]]).into_iter().step_by(2).skip(1))
        .collect()
});

/// Dark violet over red to light yellow, for `t` from 0 to 1; lightness rises evenly.
pub fn sequential(t: f32) -> [u8; 3] {
    pick(&SEQUENTIAL, t)
}

/// Blue over a light neutral to red, for `t` from −1 to 1; `t` and `−t` are equally light.
pub fn diverging(t: f32) -> [u8; 3] {
    pick(&DIVERGING, (t + 1.0) / 2.0)
}

/// Both palettes as tables of colours at even steps, the sequential one first.
#[cfg(feature = "cuda")]
pub(crate) fn tables() -> [&'static [[u8; 3]]; 2] {
    [&SEQUENTIAL, &DIVERGING]
}

fn pick(colours: &[[u8; 3]], t: f32) -> [u8; 3] {
    let last = colours.len() - 1;
    // A value that is no number counts as 0.
    colours[((t.clamp(0.0, 1.0) * last as f32).round() as usize).min(last)]
}

/// Colours at even steps of lightness along lines between control points (lightness, chroma, hue).
fn table(points: &[[f64; 3]]) -> Vec<[u8; 3]> {
    let (first, last) = (points[0][0], points[points.len() - 1][0]);
    let colour = |i: usize| {
        let l = first + (last - first) * i as f64 / (STEPS - 1) as f64;
        let beyond = |p: &[f64; 3]| (p[0] - l) * (last - first) > 0.0;
        let next = points.iter().position(beyond).unwrap_or(points.len() - 1);
        let (a, b) = (points[next - 1], points[next]);
        let t = (l - a[0]) / (b[0] - a[0]);
        let mix = |k: usize| a[k] + (b[k] - a[k]) * t;
        in_gamut(l, mix(1), mix(2).to_radians())
    };
    (0..STEPS).map(colour).collect()
}

/// The colour of this lightness and hue with at most this chroma that a screen can show.
fn in_gamut(l: f64, chroma: f64, hue: f64) -> [u8; 3] {
    let at = |share: f64| oklab(l, share * chroma * hue.cos(), share * chroma * hue.sin());
    let shown = |rgb: &[f64; 3]| rgb.iter().all(|v| (-1e-4..=1.0001).contains(v));
    let share = (0..=100).rev().map(|i| f64::from(i) / 100.0).find(|share| shown(&at(*share))).unwrap_or(0.0);
    at(share).map(|v| {
        let v = v.clamp(0.0, 1.0);
        let encoded = if v <= 0.003_130_8 { 12.92 * v } else { 1.055 * v.powf(1.0 / 2.4) - 0.055 };
        (encoded * 255.0).round() as u8
    })
}

/// OKLab to linear sRGB.
fn oklab(l: f64, a: f64, b: f64) -> [f64; 3] {
    let long = (l + 0.396_337_777_4 * a + 0.215_803_757_3 * b).powi(3);
    let medium = (l - 0.105_561_345_8 * a - 0.063_854_172_8 * b).powi(3);
    let short = (l - 0.089_484_177_5 * a - 1.291_485_548_0 * b).powi(3);
    [
        4.076_741_662_1 * long - 3.307_711_591_3 * medium + 0.230_969_929_2 * short,
        -1.268_438_004_6 * long + 2.609_757_401_1 * medium - 0.341_319_396_5 * short,
        -0.004_196_086_3 * long - 0.703_418_614_7 * medium + 1.707_614_701_0 * short,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Luminance of a colour, CIE Y.
    fn luminance(colour: [u8; 3]) -> f64 {
        let linear = colour.map(|v| {
            let v = f64::from(v) / 255.0;
            if v <= 0.040_45 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
        });
        0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    }

    /// CIE L*, 0 to 100.
    fn lightness(colour: [u8; 3]) -> f64 {
        116.0 * luminance(colour).cbrt() - 16.0
    }

    #[test]
    fn sequential_lightness_rises() {
        let l: Vec<f64> = (0..=64).map(|i| lightness(sequential(i as f32 / 64.0))).collect();
        assert!(l.windows(2).all(|p| p[1] > p[0]), "{l:?}");
        assert!(l[64] - l[0] > 75.0, "{l:?}");
    }

    #[test]
    fn diverging_is_symmetric_in_lightness_and_told_apart_by_hue() {
        for i in 0..=32 {
            let t = i as f32 / 32.0;
            let (minus, plus) = (diverging(-t), diverging(t));
            assert!((lightness(minus) - lightness(plus)).abs() < 8.0, "{t}: {minus:?} {plus:?}");
            assert!(i < 4 || (minus[2] > minus[0] && plus[0] > plus[2]), "{t}: {minus:?} {plus:?}");
        }
        assert!(lightness(diverging(0.0)) > 90.0);
    }

    #[test]
    fn values_that_are_no_numbers_have_a_colour() {
        assert_eq!(sequential(f32::NAN), sequential(0.0));
        assert_eq!(sequential(7.0), sequential(1.0));
        assert_eq!(diverging(-7.0), diverging(-1.0));
    }
}
