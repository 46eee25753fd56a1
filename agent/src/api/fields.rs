//! The fields of a request, read one by one so that every wrong one is reported, not only the first.
//!
//! A request type reads itself from [`Fields`] and says for each field whether it is required and which
//! function of [`super::values`] understands it. What nobody asked for is an unknown field.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{Code, Error, FieldError, Result};

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Not of the kind that the field holds.
    Type(String),
    /// Of the right kind, and not allowed.
    Value(String),
    /// Understood, and not in this version.
    Unsupported(String),
}

/// A type that can be read from the fields of a request.
pub trait FromFields: Sized {
    /// `None` only when a field was refused; the reason is then in `fields`.
    fn from_fields(fields: &mut Fields) -> Option<Self>;
}

/// Where a field was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Body,
    Query,
}

/// The fields of one request, and what was found wrong with them so far.
#[derive(Debug, Default)]
pub struct Fields {
    given: BTreeMap<String, (Place, Value)>,
    known: Vec<&'static str>,
    reserved: Vec<&'static str>,
    wrong: Vec<FieldError>,
    unsupported: Vec<String>,
}

impl Fields {
    /// Body and query together. A field that both have must be the same in both.
    pub fn merge(body: Map<String, Value>, query: Vec<(String, String)>) -> Self {
        let mut fields = Self::default();
        for (name, value) in body {
            fields.given.insert(name, (Place::Body, value));
        }
        for (name, text) in query {
            let same = match fields.given.get_mut(&name) {
                None => {
                    fields.given.insert(name, (Place::Query, Value::String(text)));
                    continue;
                }
                // The same query parameter again is one more item of a list.
                Some((Place::Query, Value::Array(items))) => {
                    items.push(Value::String(text));
                    continue;
                }
                Some((Place::Query, value)) => {
                    *value = Value::Array(vec![value.take(), Value::String(text)]);
                    continue;
                }
                Some((Place::Body, Value::String(string))) => *string == text,
                Some((Place::Body, value)) => {
                    // As JSON writes it: 3 and "3" are the same, 3 and "3.0" are not.
                    let written = value.to_string();
                    written == text
                }
            };
            if !same {
                fields.refuse(Place::Query, &name, "differs from the body's", "conflict");
            }
        }
        fields
    }

    /// A field that must be there.
    pub fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Value) -> std::result::Result<T, Fault>,
    ) -> Option<T> {
        let value = self.optional(name, read);
        if !matches!(self.given.get(name), Some((_, value)) if !value.is_null()) {
            self.refuse(Place::Body, name, "is required", "missing");
        }
        value
    }

    /// A field that may be absent; `null` is absent.
    pub fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Value) -> std::result::Result<T, Fault>,
    ) -> Option<T> {
        self.known.push(name);
        let (place, value) = match self.given.get(name) {
            None | Some((_, Value::Null)) => return None,
            Some((place, value)) => (*place, value),
        };
        match read(value) {
            Ok(value) => return Some(value),
            Err(Fault::Type(why)) => self.refuse(place, name, &why, "type_error"),
            Err(Fault::Value(why)) => self.refuse(place, name, &why, "value_error"),
            Err(Fault::Unsupported(why)) => self.unsupported.push(format!("{name}: {why}")),
        }
        None
    }

    /// A field with a default.
    pub fn or<T>(
        &mut self,
        name: &'static str,
        default: T,
        read: impl FnOnce(&Value) -> std::result::Result<T, Fault>,
    ) -> T {
        self.optional(name, read).unwrap_or(default)
    }

    /// A field of the contract that this version does not do: refused when it asks for something, never
    /// ignored. Ignoring `source_cidrs` would open a port to everybody.
    pub fn not_yet(&mut self, name: &'static str, what: &str) {
        self.reserved.push(name);
        let asked = match self.given.get(name).map(|(_, value)| value) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(text)) => !matches!(text.as_str(), "" | "false"),
            Some(Value::Array(items)) => !items.is_empty(),
            Some(Value::Bool(true) | Value::Number(_) | Value::Object(_)) => true,
        };
        if asked {
            self.unsupported.push(format!("{name}: {what} is not in this version"));
        }
    }

    /// Refuses a field for what it means beside another one.
    pub fn conflict(&mut self, name: &str, why: &str) {
        self.refuse(Place::Body, name, why, "conflict");
    }

    /// Whether the field was given a value.
    pub fn has(&self, name: &str) -> bool {
        self.given.get(name).is_some_and(|(_, value)| !value.is_null())
    }

    /// Reads a whole request: the value and warnings about fields that nobody asked for.
    pub fn read<T: FromFields>(mut self) -> Result<(T, Vec<String>)> {
        let value = T::from_fields(&mut self);
        if !self.wrong.is_empty() {
            return Err(invalid(self.wrong));
        }
        if !self.unsupported.is_empty() {
            return Err(Error::new(Code::Unsupported, self.unsupported.join("; "))
                .hint("nothing was changed; /docs shows what this version does"));
        }
        let warnings = (self.given.keys())
            .filter(|name| !self.known.contains(&name.as_str()) && !self.reserved.contains(&name.as_str()))
            .map(|name| format!("unknown field '{}' was ignored", printable(name)))
            .collect();
        match value {
            Some(value) => Ok((value, warnings)),
            None => Err(Error::new(Code::Internal, "a request was refused without a reason")),
        }
    }

    fn refuse(&mut self, place: Place, name: &str, msg: &str, kind: &str) {
        let place = match place {
            Place::Body => "body",
            Place::Query => "query",
        };
        self.wrong.push(FieldError {
            loc: vec![place.into(), printable(name)],
            msg: msg.into(),
            kind: kind.into(),
        });
    }
}

/// 422 with every wrong field.
pub fn invalid(fields: Vec<FieldError>) -> Error {
    let sentence = |field: &FieldError| match field.loc.get(1) {
        Some(name) => format!("{name}: {}", field.msg),
        None => format!("the {} {}", field.loc.concat(), field.msg),
    };
    let message = fields.iter().map(sentence).collect::<Vec<_>>().join("; ");
    Error { code: Code::InvalidField, message, hint: None, fields }
}

/// 422 for a part of the path.
pub fn in_path(name: &str, why: &str) -> Error {
    invalid(vec![FieldError {
        loc: vec!["path".into(), name.into()],
        msg: why.into(),
        kind: "value_error".into(),
    }])
}

/// A name of the caller's, fit for one line of a log or a message.
fn printable(name: &str) -> String {
    const MAX: usize = 64;
    let text: String = name.chars().take(MAX).flat_map(char::escape_debug).collect();
    if name.chars().nth(MAX).is_some() { format!("{text}...") } else { text }
}

/// Reads a request from a JSON object.
#[cfg(test)]
pub(crate) fn read<T: FromFields>(body: Value) -> Result<T> {
    let Value::Object(body) = body else { panic!("no object: {body}") };
    Fields::merge(body, Vec::new()).read().map(|(value, _)| value)
}

/// That the schema of a request type names the fields that its reader asks for, and requires the same ones.
#[cfg(test)]
pub(crate) fn assert_schema_matches<T: FromFields + utoipa::ToSchema>() {
    let mut fields = Fields::default();
    let _ = T::from_fields(&mut fields);
    let schema = serde_json::to_value(T::schema()).unwrap();
    let mut documented: Vec<&str> =
        schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    documented.sort_unstable();
    fields.known.sort_unstable();
    fields.known.dedup();
    assert_eq!(documented, fields.known, "fields of {}", T::name());

    let mut required: Vec<String> = serde_json::from_value(schema["required"].clone()).unwrap_or_default();
    required.sort_unstable();
    let mut missing: Vec<String> = (fields.wrong.iter())
        .filter(|field| field.kind == "missing")
        .map(|field| field.loc[1].clone())
        .collect();
    missing.sort_unstable();
    assert_eq!(required, missing, "required fields of {}", T::name());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::values, *};

    #[derive(Debug, PartialEq)]
    struct Pair {
        name: String,
        count: Option<u32>,
    }

    impl FromFields for Pair {
        fn from_fields(fields: &mut Fields) -> Option<Self> {
            let name = fields.required("name", values::text);
            let count = fields.optional("count", values::integer(1, 9));
            Some(Self { name: name?, count })
        }
    }

    fn read(body: Value, query: &[(&str, &str)]) -> Result<(Pair, Vec<String>)> {
        let query = query.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let Value::Object(body) = body else { panic!("no object: {body}") };
        Fields::merge(body, query).read()
    }

    #[test]
    fn query_values_are_converted_to_what_the_field_holds() {
        let (pair, warnings) = read(json!({}), &[("name", "a"), ("count", "3")]).unwrap();
        assert_eq!(pair, Pair { name: "a".into(), count: Some(3) });
        assert!(warnings.is_empty());
    }

    #[test]
    fn every_wrong_field_is_reported() {
        let error = read(json!({ "count": "many" }), &[]).unwrap_err();
        assert_eq!(error.code, Code::InvalidField);
        let kinds: Vec<_> =
            error.fields.iter().map(|field| (field.loc[1].as_str(), field.kind.as_str())).collect();
        assert_eq!(kinds, [("name", "missing"), ("count", "type_error")]);
    }

    #[test]
    fn null_is_absent() {
        assert_eq!(read(json!({ "name": "a", "count": null }), &[]).unwrap().0.count, None);
        assert_eq!(read(json!({ "name": null }), &[]).unwrap_err().fields[0].kind, "missing");
    }

    #[test]
    fn the_same_value_in_body_and_query_is_no_conflict() {
        let (pair, _) = read(json!({ "name": "a", "count": 3 }), &[("count", "3"), ("name", "a")]).unwrap();
        assert_eq!(pair.count, Some(3));
    }

    #[test]
    fn different_values_in_body_and_query_are_a_conflict() {
        let error = read(json!({ "name": "a" }), &[("name", "b")]).unwrap_err();
        assert_eq!(error.fields[0].kind, "conflict");
        assert_eq!(error.fields[0].loc, ["query", "name"]);
    }

    #[test]
    fn a_repeated_query_parameter_is_no_scalar() {
        let error = read(json!({}), &[("name", "a"), ("name", "b"), ("name", "c")]).unwrap_err();
        assert_eq!(error.fields[0].kind, "type_error");
    }

    #[test]
    fn unknown_fields_are_named() {
        let (_, warnings) = read(json!({ "name": "a", "nmae": 1, "b\n": 2 }), &[]).unwrap();
        assert_eq!(warnings, ["unknown field 'b\\n' was ignored", "unknown field 'nmae' was ignored"]);
    }
}
