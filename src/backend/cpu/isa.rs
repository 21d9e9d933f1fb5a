//! Which vector instructions the code of this backend uses, chosen in one place. The library behind
//! [`matmul`](super::matmul) chooses for itself.

use std::ffi::OsStr;
use std::sync::OnceLock;

use crate::error::{ErrorKind, Result};

/// Instructions that there is code for, from narrow registers to wide ones. A processor that has some has all before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Isa {
    /// No more than every processor of the target has.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512F as well.
    Avx512,
}

const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

/// Names what is used where the processor has more.
const VARIABLE: &str = "UCAG_ISA";

impl Isa {
    /// As the environment variable has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// What to use, always present: what the environment names, or else the widest.
    pub fn current() -> Self {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        let choose = || Self::asked().ok().flatten().or(Self::available().max()).unwrap_or(Self::Portable);
        *CURRENT.get_or_init(choose)
    }

    /// All that the processor has.
    pub fn available() -> impl Iterator<Item = Self> {
        ALL.into_iter().filter(|isa| isa.is_present())
    }

    /// Whether the processor has it.
    pub fn is_present(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Self::Avx2.is_present() && is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// # Errors
    /// When the environment names what is unknown or not present.
    pub fn check() -> Result<()> {
        Self::asked().map(|_| ())
    }

    fn asked() -> Result<Option<Self>> {
        std::env::var_os(VARIABLE).filter(|name| !name.is_empty()).map(|name| Self::named(&name)).transpose()
    }

    fn named(name: &OsStr) -> Result<Self> {
        let problem = match ALL.into_iter().find(|isa| name == isa.name()) {
            Some(isa) if isa.is_present() => return Ok(isa),
            Some(isa) => format!("this processor has no {}", isa.name()),
            None => format!("expected `avx512`, `avx2` or `portable`, found `{}`", name.display()),
        };
        Err(ErrorKind::Option { option: VARIABLE, problem }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for isa in ALL {
            let expected = isa.is_present().then_some(isa);
            assert_eq!(Isa::named(isa.name().as_ref()).ok(), expected, "{isa:?}");
        }
        assert!(Isa::named("".as_ref()).is_err());
        assert!(Isa::current().is_present());
    }
}
