//! What is done to a convolution's products on their way into the result.

use super::elementwise::by_kind;
use super::simd::fetch;
use super::{Base, View};
use crate::backend::{Divisor, Variant, rectify};

/// One run of a convolution.
pub(super) struct Call<'a> {
    pub source: View<'a>,
    pub epilogue: Epilogue<'a>,
    pub base: Base<'a>,
    pub lanes: usize,
}

/// A layer's biases and what is made of them.
type Bias<'a> = Option<(&'a [f32], Variant)>;

/// What is done to a product on its way into the result.
pub(super) enum Epilogue<'a> {
    Forward { bias: Bias<'a>, relu: bool },
    Quotient { bias: Bias<'a>, r: View<'a>, by: Divisor, scale: f32 },
    Backward { mul: Option<View<'a>> },
}

impl Call<'_> {
    /// Has the operands that [`finish`](Self::finish) will read elsewhere for `n` elements brought near.
    #[inline(always)]
    pub(super) fn fetch(&self, b: usize, at: usize, n: usize) {
        let read = match &self.epilogue {
            Epilogue::Forward { .. } | Epilogue::Backward { mul: None } => None,
            Epilogue::Quotient { r: view, .. } | Epilogue::Backward { mul: Some(view) } => Some(view),
        };
        let read = read.map(|view| &view.of(b, self.lanes)[at..at + n]);
        read.into_iter().chain(self.base.term(b, self.lanes, at, n)).for_each(fetch);
    }

    /// Turns products, which belong to elements of result `b` from `at` on and to channels from `channel` on, into `out`.
    #[inline(always)]
    pub(super) fn finish(&self, products: &mut [f32], b: usize, at: usize, channel: usize, out: &mut [f32]) {
        let n = products.len();
        let in_place = matches!(self.base, Base::InPlace);
        let term = self.base.term(b, self.lanes, at, n);
        match &self.epilogue {
            Epilogue::Forward { bias, relu } => {
                complete(products, term, bias.map(|(bias, variant)| (&bias[channel..channel + n], variant)));
                finish_into(products, in_place, *relu, out);
            }
            Epilogue::Quotient { bias, r, by, scale } => {
                complete(products, term, bias.map(|(bias, variant)| (&bias[channel..channel + n], variant)));
                finish_quotient(products, in_place, &r.of(b, self.lanes)[at..at + n], *by, *scale, out);
            }
            Epilogue::Backward { mul } => {
                let mul = mul.map(|mul| &mul.of(b, self.lanes)[at..at + n]);
                finish_back(products, in_place, term, mul, out);
            }
        }
    }
}

/// Adds a bias, and a term that lies elsewhere. The term comes last wherever it lies, so that where it lies changes no bit.
#[inline(always)]
fn complete(products: &mut [f32], term: Option<&[f32]>, bias: Bias<'_>) {
    match bias {
        None => {}
        Some((bias, Variant::Plain)) => products.iter_mut().zip(bias).for_each(|(y, b)| *y += b),
        Some((bias, variant)) => products.iter_mut().zip(bias).for_each(|(y, b)| *y += variant.of(*b)),
    }
    if let Some(term) = term {
        products.iter_mut().zip(term).for_each(|(y, t)| *y += t);
    }
}

/// Adds what the result holds, if that is a term, and rectifies.
#[inline(always)]
fn finish_into(products: &[f32], in_place: bool, relu: bool, out: &mut [f32]) {
    match (in_place, relu) {
        (false, false) => out.copy_from_slice(products),
        (false, true) => out.iter_mut().zip(products).for_each(|(o, y)| *o = rectify(*y)),
        (true, false) => out.iter_mut().zip(products).for_each(|(o, y)| *o += y),
        (true, true) => out.iter_mut().zip(products).for_each(|(o, y)| *o = rectify(*y + *o)),
    }
}

/// Adds what the result holds, if that is a term, and divides `r` by it.
#[inline(always)]
fn finish_quotient(products: &mut [f32], in_place: bool, r: &[f32], by: Divisor, scale: f32, out: &mut [f32]) {
    if in_place {
        products.iter_mut().zip(&*out).for_each(|(z, o)| *z += o);
    }
    by_kind!(by, |quotient| {
        out.iter_mut().zip(r).zip(products).for_each(|((o, r), z)| *o = scale * quotient(*r, *z));
    });
}

/// A product of the other direction: `mul` times it, and a term.
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
