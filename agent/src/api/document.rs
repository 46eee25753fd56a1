//! What the OpenAPI document says beside the routes.

use utoipa::openapi::{
    Info, OpenApi, OpenApiBuilder,
    path::{Operation, PathItem},
    security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    tag::TagBuilder,
};

use super::error;

const DESCRIPTION: &str = "\
Bridges, links and NAT of one server.\n\n\
Bodies are JSON whatever the content type says; fields may also be query parameters. Every error has the shape of \
`Failure` with a stable `code`. Everything under `/bridge`, `/veth`, `/vlan`, `/tuntap` and `/nat` is under `/network` as well. \
Callers from other machines need the bearer token of the worker's state directory.";

/// The document before its routes.
pub fn skeleton() -> OpenApi {
    let mut info = Info::new("TeleCluster worker", env!("CARGO_PKG_VERSION"));
    info.description = Some(DESCRIPTION.into());
    let components = error::components()
        .security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)))
        .build();
    let tags = [
        ("bridge", "Bridges and their ports"),
        ("veth", "Veth pairs"),
        ("vlan", "VLANs"),
        ("tuntap", "TUNs and TAPs"),
        ("nat", "Port forwards, masquerade, flows"),
        ("network", "What the host has"),
        ("root", "The worker itself"),
    ];
    let tag = |(name, text)| TagBuilder::new().name(name).description(Some(text)).build();
    // Nothing, or the token: it depends on where the caller is.
    let security = [SecurityRequirement::default(), SecurityRequirement::new("token", [""; 0])];
    OpenApiBuilder::new()
        .security(Some(security))
        .info(info)
        .components(Some(components))
        .tags(Some(tags.map(tag)))
        .build()
}

/// The resources that are under `/network` too.
const ALIASED: [&str; 5] = ["bridge", "veth", "vlan", "tuntap", "nat"];

/// Gives the second names of routes ids of their own: an operation id must be unique.
pub fn name_aliases(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        if !ALIASED.iter().any(|resource| path.starts_with(&format!("/network/{resource}/"))) {
            continue;
        }
        for operation in operations(item) {
            operation.operation_id = operation.operation_id.take().map(|id| format!("network_{id}"));
            operation.tags = Some(vec!["network".into()]);
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::api::document;

    #[test]
    fn operation_ids_are_unique() {
        let document = serde_json::to_value(document()).unwrap();
        let mut seen = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap();
                assert!(seen.insert(id.to_owned()), "{method} {path}: {id} is there twice");
            }
        }
        assert!(seen.contains("network_create_bridge"));
    }

    #[test]
    fn everything_that_is_referred_to_is_there() {
        let document = serde_json::to_value(document()).unwrap();
        let text = document.to_string();
        for reference in text.split("\"#/").skip(1) {
            let pointer = format!("/{}", reference.split('"').next().unwrap());
            assert!(document.pointer(&pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn the_readme_names_every_call_and_no_other() {
        let document = serde_json::to_value(document()).unwrap();
        let mut calls = BTreeSet::from(["GET /docs".to_owned(), "GET /openapi.json".to_owned()]);
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                // The second spelling of a call has an id of its own.
                if !operation["operationId"].as_str().unwrap().starts_with("network_")
                    || !path.starts_with("/network/")
                {
                    calls.insert(format!("{} {path}", method.to_uppercase()));
                }
            }
        }
        calls.insert("GET /network/status".to_owned());
        let readme = include_str!("../../../README.md");
        let table = readme.split("## All calls").nth(1).and_then(|text| text.split("\n## ").next()).unwrap();
        let named: BTreeSet<String> = (table.split('`'))
            .filter(|text| {
                text.starts_with("GET /") || text.starts_with("POST /") || text.starts_with("DELETE /")
            })
            .map(str::to_owned)
            .collect();
        assert_eq!(named, calls);
    }

    #[test]
    fn the_checked_in_document_is_the_current_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let current = crate::api::document_text();
        let checked_in = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            checked_in == current,
            "docs/openapi.json is not the current one: cargo run -q -p telecluster-worker -- openapi > docs/openapi.json"
        );
    }
}
