//! `/openapi.json`: what every route takes and gives, for tools.
//!
//! The document is written by hand, beside the code that it describes; tests hold the two together:
//! every route is in it and nothing else is, and its examples are what the daemon takes.

use std::sync::LazyLock;

use super::body::Fields;
use super::refusal::HttpError;
use super::{Answer, App};

/// Where the document has the version.
const VERSION: &str = "\"VERSION\"";

static DOCUMENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let version = concat!("\"", env!("CARGO_PKG_VERSION"), "\"");
    include_str!("openapi.json").replacen(VERSION, version, 1).into_bytes()
});

/// The document.
pub(super) fn openapi(_: &App, _: Fields<'_>) -> Result<Answer, HttpError> {
    Ok(Answer::of_json(DOCUMENT.clone()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::super::routes::ROUTES;
    use super::*;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let document: Value = serde_json::from_slice(&DOCUMENT).unwrap();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let served: BTreeSet<(String, &str)> =
            ROUTES.iter().map(|route| (route.path.to_owned(), route.method())).collect();
        assert_eq!(served.len(), ROUTES.len(), "a route comes twice");
        let mut described = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                described.insert((path.clone(), method.as_str()));
            }
        }
        assert_eq!(described, served);
    }
}
