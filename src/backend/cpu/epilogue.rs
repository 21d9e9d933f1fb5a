//! What is done to a convolution's products on their way into the result.

use super::{Base, View};
use crate::backend::{Variant, rectify};

/// One run of a convolution.
pub(super) struct Call<'a> {
    pub source: View<'a>,
    pub epilogue: Epilogue<'a>,
    pub base: Base<'a>,
    pub lanes: usize,
}

/// What is done to a product on its way into the result.
pub(super) enum Epilogue<'a> {
    Forward { bias: Option<(&'a [f32], Variant)>, relu: bool },
    Backward { mul: Option<View<'a>> },
}

impl Call<'_> {
    /// Turns products, which belong to elements of result `b` from `at` on and to channels from `channel` on, into `out`.
    #[inline(always)]
    pub(super) fn finish(&self, products: &mut [f32], b: usize, at: usize, channel: usize, out: &mut [f32]) {
        let n = products.len();
        let in_place = matches!(self.base, Base::InPlace);
        let term = self.base.term(b, self.lanes, at, n);
        match &self.epilogue {
            Epilogue::Forward { bias, relu } => {
                let bias = bias.map(|(bias, variant)| (&bias[channel..channel + n], variant));
                finish_into(products, in_place, term, bias, *relu, out);
            }
            Epilogue::Backward { mul } => {
                let mul = mul.map(|mul| &mul.of(b, self.lanes)[at..at + n]);
                finish_back(products, in_place, term, mul, out);
            }
        }
    }
}

/// Adds a bias and a term, which the result may hold, and rectifies. The term comes last wherever it lies, so that where it
/// lies changes no bit.
#[inline(always)]
fn finish_into(
    products: &mut [f32],
    in_place: bool,
    term: Option<&[f32]>,
    bias: Option<(&[f32], Variant)>,
    relu: bool,
    out: &mut [f32],
) {
    match bias {
        None => {}
        Some((bias, Variant::Plain)) => products.iter_mut().zip(bias).for_each(|(y, b)| *y += b),
        Some((bias, variant)) => products.iter_mut().zip(bias).for_each(|(y, b)| *y += variant.of(*b)),
    }
    if let Some(term) = term {
        products.iter_mut().zip(term).for_each(|(y, t)| *y += t);
    }
    match (in_place, relu) {
        (false, false) => out.iter_mut().zip(&*products).for_each(|(o, y)| *o = *y),
        (false, true) => out.iter_mut().zip(&*products).for_each(|(o, y)| *o = rectify(*y)),
        (true, false) => out.iter_mut().zip(&*products).for_each(|(o, y)| *o += y),
        (true, true) => out.iter_mut().zip(&*products).for_each(|(o, y)| *o = rectify(*y + *o)),
    }
}

/// The same for a product of the other direction: `mul` times it, and a term.
#[inline(always)]
fn finish_back(products: &mut [f32], in_place: bool, term: Option<&[f32]>, mul: Option<&[f32]>, out: &mut [f32]) {
    if let Some(mul) = mul {
        products.iter_mut().zip(mul).for_each(|(p, m)| *p *= m);
    }
    match (in_place, term) {
        (true, _) => out.iter_mut().zip(&*products).for_each(|(o, p)| *o += p),
        (false, Some(term)) => out.iter_mut().zip(&*products).zip(term).for_each(|((o, p), t)| *o = t + p),
        (false, None) => out.iter_mut().zip(&*products).for_each(|(o, p)| *o = *p),
    }
}
