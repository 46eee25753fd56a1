//! The request extractor: JSON whatever the content type says, together with the query.
//!
//! `curl -d '{...}'` announces a form and sends JSON; existing clients also put the fields into the query.
//! Being lenient here is safe only behind [`super::guard`].

use std::fmt;

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::StatusCode,
    response::IntoResponse,
};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value, error::Category};

use super::{
    error::Refusal,
    fields::{Fields, FromFields, invalid},
};
use crate::error::{Code, Error, FieldError, Result};

/// A request read from body and query, and what its caller should know about it.
#[derive(Debug)]
pub struct Lenient<T> {
    pub value: T,
    /// Fields that nobody asked for.
    pub warnings: Vec<String>,
}

impl<S: Send + Sync, T: FromFields> FromRequest<S> for Lenient<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let query = query(request.uri().query().unwrap_or_default());
        let body = Bytes::from_request(request, state).await.map_err(|rejection| {
            let text = rejection.body_text();
            if rejection.into_response().status() == StatusCode::PAYLOAD_TOO_LARGE {
                Error::new(Code::BodyTooLarge, format!("the body is larger than {} bytes", super::BODY_MAX))
            } else {
                Error::new(Code::MalformedJson, format!("the body did not arrive whole: {text}"))
            }
        })?;
        let (value, warnings) = Fields::merge(object(&body)?, query).read()?;
        Ok(Self { value, warnings })
    }
}

/// The pairs of a query, decoded.
fn query(query: &str) -> Vec<(String, String)> {
    url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// The JSON object in a body. No body is an object without fields.
fn object(body: &[u8]) -> Result<Map<String, Value>> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice::<Object>(body) {
        Ok(object) => Ok(object.0),
        Err(error) if error.classify() == Category::Data => Err(invalid(vec![FieldError {
            loc: vec!["body".into()],
            msg: format!("is wrong: {error}"),
            kind: "type_error".into(),
        }])),
        Err(error) => Err(Error::new(Code::MalformedJson, format!("the body is not JSON: {error}"))
            .hint("send a JSON object such as {\"name\": \"br-vm\"}")),
    }
}

/// A JSON object whose keys are told apart: with the same key twice, two readers of one request could
/// understand two different things.
struct Object(Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Object, A::Error> {
                let mut map = Map::new();
                while let Some((key, value)) = entries.next_entry::<String, Value>()? {
                    if map.insert(key, value).is_some() {
                        return Err(A::Error::custom("a field is given twice"));
                    }
                }
                Ok(Object(map))
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_body_has_no_fields() {
        assert!(object(b"").unwrap().is_empty());
        assert!(object(b" \r\n").unwrap().is_empty());
        assert!(object(b"{}").unwrap().is_empty());
    }

    #[test]
    fn truncated_json_is_malformed_and_says_where() {
        for body in [&b"{"[..], b"{\"name\": \"br", b"{\"name\": }", b"name=br-vm", b"\xff\xfe", b"{} {}"] {
            let error = object(body).unwrap_err();
            assert_eq!(error.code, Code::MalformedJson, "{body:?}");
            assert!(error.message.contains("line 1 column"), "{}", error.message);
        }
    }

    #[test]
    fn json_of_another_shape_is_invalid() {
        for body in ["[]", "\"name\"", "5", "null", "true"] {
            assert_eq!(object(body.as_bytes()).unwrap_err().code, Code::InvalidField, "{body}");
        }
    }

    #[test]
    fn a_field_given_twice_is_invalid() {
        let error = object(br#"{"external_port": 80, "external_port": 22}"#).unwrap_err();
        assert_eq!(error.code, Code::InvalidField);
        assert!(error.message.contains("given twice"), "{}", error.message);
    }

    #[test]
    fn nesting_without_end_is_refused_and_does_not_overflow() {
        let body = "[".repeat(100_000);
        assert!(object(format!("{{\"a\":{body}").as_bytes()).is_err());
    }

    #[test]
    fn query_pairs_are_decoded() {
        assert_eq!(
            query("a=1%2F2&b&a=%"),
            [
                ("a".to_owned(), "1/2".to_owned()),
                ("b".to_owned(), String::new()),
                ("a".to_owned(), "%".to_owned()),
            ]
        );
    }
}
