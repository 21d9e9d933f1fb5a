//! What can be set about a method, and what is set for a run.

use std::fmt;
use std::path::Path;

use super::Method;
use crate::error::{Error, ErrorKind, Result};

/// Something that can be set about a method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// Name, as `--set` takes it.
    pub key: &'static str,
    /// What values it takes, and which it has unless set.
    pub kind: Kind,
    /// What it does, in a few words.
    pub help: &'static str,
}

/// The values that a setting takes. Bounds are included.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum Kind {
    /// A finite number.
    Number { default: f64, min: f64, max: f64 },
    /// A whole number.
    Count { default: usize, min: usize, max: usize },
    /// One of these words; the first unless set.
    Choice(&'static [&'static str]),
    /// Yes or no; this unless set.
    Flag(bool),
    /// A text that the method itself makes sense of, or `@FILE` for that of a file; empty unless set.
    Text,
}

/// A setting's value.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Value {
    Number(f64),
    Count(usize),
    Choice(&'static str),
    Flag(bool),
    Text(String),
}

/// The values of all settings of one method.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings(Vec<(&'static str, Value)>);

impl Kind {
    /// The value that holds unless set.
    pub fn default(&self) -> Value {
        match *self {
            Self::Number { default, .. } => Value::Number(default),
            Self::Count { default, .. } => Value::Count(default),
            Self::Choice(words) => Value::Choice(words[0]),
            Self::Flag(default) => Value::Flag(default),
            Self::Text => Value::Text(String::new()),
        }
    }

    /// The value that a text stands for, where it stands for one.
    fn parse(&self, text: &str) -> Option<Value> {
        match *self {
            Self::Number { min, max, .. } => {
                text.parse().ok().filter(|v: &f64| v.is_finite() && (min..=max).contains(v)).map(Value::Number)
            }
            Self::Count { min, max, .. } => text.parse().ok().filter(|v| (min..=max).contains(v)).map(Value::Count),
            Self::Choice(words) => words.iter().find(|word| **word == text).map(|word| Value::Choice(word)),
            Self::Flag(_) => text.parse().ok().map(Value::Flag),
            Self::Text => Some(Value::Text(text.into())),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Number { min, max, .. } if max.is_infinite() => write!(f, "a number of {min} or more"),
            Self::Number { min, max, .. } => write!(f, "a number from {min} to {max}"),
            Self::Count { min, max, .. } if max == usize::MAX => write!(f, "a whole number of {min} or more"),
            Self::Count { min, max, .. } => write!(f, "a whole number from {min} to {max}"),
            Self::Choice(words) => f.write_str(&words.join(" or ")),
            Self::Flag(_) => f.write_str("true or false"),
            Self::Text => f.write_str("a text"),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(v) => v.fmt(f),
            Self::Count(v) => v.fmt(f),
            Self::Choice(v) => v.fmt(f),
            Self::Flag(v) => v.fmt(f),
            Self::Text(v) => v.fmt(f),
        }
    }
}

impl Settings {
    /// What holds unless set.
    pub fn default(method: &Method) -> Self {
        Self(method.settings.iter().map(|s| (s.key, s.kind.default())).collect())
    }

    /// The method's settings with the given keys set; of a key given twice the last value counts.
    ///
    /// # Errors
    /// For a key that the method does not know, for a value that its setting does not take, and for a file that cannot
    /// be read.
    pub fn parse(method: &Method, pairs: &[(String, String)]) -> Result<Self> {
        let mut settings = Self::default(method);
        for (key, text) in pairs {
            let Some(at) = method.settings.iter().position(|s| s.key == key) else {
                return Err(Error::unknown("setting", key, known(&[method])));
            };
            let kind = &method.settings[at].kind;
            let file = text.strip_prefix('@').filter(|_| *kind == Kind::Text).map(Path::new);
            let text = &match file {
                Some(path) => std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?,
                None => text.clone(),
            };
            settings.0[at].1 = kind.parse(text).ok_or_else(|| {
                let problem = format!("expected {kind}, found `{text}`");
                ErrorKind::Setting { method: method.name, key: key.clone(), problem }
            })?;
        }
        Ok(settings)
    }

    /// The settings of several methods. A plain `key` is set for each of them that knows it, `method.key` for that one.
    ///
    /// # Errors
    /// As [`Settings::parse`], and for a method that is none of these.
    pub fn distribute(methods: &[&'static Method], pairs: &[(String, String)]) -> Result<Vec<Self>> {
        let mut own: Vec<Vec<(String, String)>> = vec![vec![]; methods.len()];
        for (full, text) in pairs {
            let (owner, key) = match full.split_once('.') {
                Some((owner, key)) => (Some(owner), key),
                None => (None, full.as_str()),
            };
            let mut taken = false;
            for (method, own) in methods.iter().zip(&mut own) {
                let meant = owner.is_none_or(|owner| owner == method.name);
                if meant && method.settings.iter().any(|s| s.key == key) {
                    own.push((key.into(), text.clone()));
                    taken = true;
                }
            }
            if !taken {
                return Err(Error::unknown("setting", full, known(methods)));
            }
        }
        methods.iter().zip(&own).map(|(method, pairs)| Self::parse(method, pairs)).collect()
    }

    /// Keys and values.
    pub fn iter(&self) -> impl Iterator<Item = &(&'static str, Value)> {
        self.0.iter()
    }

    /// A number.
    pub fn number(&self, key: &str) -> f64 {
        match self.value(key) {
            Value::Number(v) => *v,
            other => unreachable!("`{key}` is {other:?}, no number"),
        }
    }

    /// A whole number.
    pub fn count(&self, key: &str) -> usize {
        match self.value(key) {
            Value::Count(v) => *v,
            other => unreachable!("`{key}` is {other:?}, no whole number"),
        }
    }

    /// One of the words of a choice.
    pub fn choice(&self, key: &str) -> &'static str {
        match self.value(key) {
            Value::Choice(v) => v,
            other => unreachable!("`{key}` is {other:?}, no choice"),
        }
    }

    /// Yes or no.
    pub fn flag(&self, key: &str) -> bool {
        match self.value(key) {
            Value::Flag(v) => *v,
            other => unreachable!("`{key}` is {other:?}, no flag"),
        }
    }

    /// A text.
    pub fn text(&self, key: &str) -> &str {
        match self.value(key) {
            Value::Text(v) => v,
            other => unreachable!("`{key}` is {other:?}, no text"),
        }
    }

    fn value(&self, key: &str) -> &Value {
        match self.0.iter().find(|(known, _)| *known == key) {
            Some((_, value)) => value,
            None => unreachable!("the method declares no setting `{key}`"),
        }
    }
}

/// All keys that can be set, each with its method.
fn known(methods: &[&Method]) -> Vec<String> {
    let keys = |method: &&Method| match method.settings {
        [] => vec![format!("none of {}", method.name)],
        settings => settings.iter().map(|s| format!("{}.{}", method.name, s.key)).collect(),
    };
    methods.iter().flat_map(keys).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::METHODS;

    const BARE: Method = METHODS[0];
    const NOISY: Method = Method {
        name: "noisy",
        settings: &[
            Setting { key: "sigma", kind: Kind::Number { default: 0.15, min: 0.0, max: 1.0 }, help: "" },
            Setting { key: "draws", kind: Kind::Count { default: 25, min: 1, max: 1000 }, help: "" },
            Setting { key: "form", kind: Kind::Choice(&["max", "sum"]), help: "" },
            Setting { key: "square", kind: Kind::Flag(false), help: "" },
            Setting { key: "layers", kind: Kind::Text, help: "" },
        ],
        ..METHODS[0]
    };
    const OTHER: Method = Method { name: "other", ..NOISY };

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn values_are_those_that_were_set_or_the_defaults() {
        let all = Settings::default(&NOISY);
        assert_eq!((all.number("sigma"), all.count("draws"), all.choice("form")), (0.15, 25, "max"));
        assert_eq!((all.flag("square"), all.text("layers")), (false, ""));
        let set =
            [("draws", "1"), ("form", "sum"), ("square", "true"), ("layers", "a=b"), ("sigma", "1"), ("draws", "7")];
        let set = Settings::parse(&NOISY, &pairs(&set)).unwrap();
        assert_eq!((set.number("sigma"), set.count("draws"), set.choice("form")), (1.0, 7, "sum"));
        assert_eq!((set.flag("square"), set.text("layers")), (true, "a=b"));
        assert_ne!(set, all);
    }

    #[test]
    fn values_that_make_no_sense_name_method_key_and_what_was_expected() {
        let cases = [
            ("sigma", "-0.1", "a number from 0 to 1"),
            ("sigma", "nan", "a number from 0 to 1"),
            ("sigma", "much", "a number from 0 to 1"),
            ("draws", "0", "a whole number from 1 to 1000"),
            ("draws", "2.5", "a whole number from 1 to 1000"),
            ("form", "mean", "max or sum"),
            ("square", "yes", "true or false"),
        ];
        for (key, value, expected) in cases {
            let error = Settings::parse(&NOISY, &pairs(&[(key, value)])).unwrap_err().to_string();
            assert_eq!(error, format!("setting `{key}` of noisy: expected {expected}, found `{value}`"));
        }
    }

    #[test]
    fn keys_go_to_the_methods_that_know_them() {
        let methods: [&'static Method; 3] = [&BARE, &NOISY, &OTHER];
        let set = Settings::distribute(&methods, &pairs(&[("draws", "5"), ("other.draws", "6")])).unwrap();
        assert_eq!(set[0].iter().count(), 0);
        assert_eq!((set[1].count("draws"), set[2].count("draws")), (5, 6));
        for key in ["brush", "noisy.brush", "gradient.draws", "grad-cam.draws"] {
            let error = Settings::distribute(&methods[..2], &pairs(&[(key, "1")])).unwrap_err().to_string();
            let known = "none of grad-cam, noisy.sigma, noisy.draws, noisy.form, noisy.square, noisy.layers";
            assert_eq!(error, format!("unknown setting `{key}`; known: {known}"));
        }
    }
}
