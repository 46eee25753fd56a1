//! The envelope of a mutation or a single object.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::{Object, Outcome};

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// It worked, and there is something to know: `data.warnings`.
    Warning,
}

/// The answer to a mutation, or to the question for one object.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Answer<T> {
    pub status: Status,
    /// One sentence with names.
    pub message: String,
    pub data: Data<T>,
    /// Always null.
    #[schema(value_type = Option<String>)]
    pub error: (),
}

/// The object as the kernel has it, and what the call did.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Data<T> {
    #[serde(flatten)]
    pub object: T,
    /// Rules only: the id that deletes and asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_id: Option<String>,
    /// True; false only where not reaching another host is an answer (ping, traceroute).
    #[schema(example = true)]
    pub success: bool,
    /// False when everything was so already.
    pub changed: bool,
    /// What the caller should know although it worked.
    pub warnings: Vec<String>,
}

/// What is gone after a delete.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Gone {
    /// Names or ids.
    pub removed: Vec<String>,
}

impl Answer<Object> {
    /// What a change came to, as the engine observed it. A typo in a request is worth a line in `warnings`,
    /// not another status.
    pub fn of(outcome: Outcome, unknown_fields: Vec<String>) -> Self {
        let Outcome { changed, message, object, mut warnings } = outcome;
        let status = if warnings.is_empty() { Status::Ok } else { Status::Warning };
        warnings.extend(unknown_fields);
        let rule_id = match &object {
            Object::Rule(rule) => Some(rule.id.clone()),
            Object::Firewall(rule) => Some(rule.id.clone()),
            Object::Bridge(_)
            | Object::Veth(_)
            | Object::Tun(_)
            | Object::VlanLink(_)
            | Object::PortVlans(_)
            | Object::Gone { .. } => None,
        };
        Self { status, message, data: Data { object, rule_id, success: true, changed, warnings }, error: () }
    }

    /// One object that was asked for.
    pub fn shown(message: impl Into<String>, object: Object) -> Self {
        Self::of(
            Outcome { changed: false, message: message.into(), object, warnings: Vec::new() },
            Vec::new(),
        )
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        Json(self).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(warnings: &[&str]) -> Outcome {
        Outcome {
            changed: true,
            message: "bridge br0 is deleted".into(),
            object: Object::Gone { removed: vec!["br0".into()] },
            warnings: warnings.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn the_object_and_the_result_share_data() {
        let answer = serde_json::to_value(Answer::of(gone(&[]), vec![])).unwrap();
        assert_eq!(
            answer,
            serde_json::json!({
                "status": "ok",
                "message": "bridge br0 is deleted",
                "data": { "removed": ["br0"], "success": true, "changed": true, "warnings": [] },
                "error": null,
            })
        );
    }

    #[test]
    fn only_the_engines_warnings_change_the_status() {
        assert_eq!(Answer::of(gone(&[]), vec!["unknown field 'x' was ignored".into()]).status, Status::Ok);
        let answer =
            Answer::of(gone(&["one end is held back"]), vec!["unknown field 'x' was ignored".into()]);
        assert_eq!(answer.status, Status::Warning);
        assert_eq!(answer.data.warnings.len(), 2);
    }
}
