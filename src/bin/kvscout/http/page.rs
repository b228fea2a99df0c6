//! The page at `/`: one document that shows what `/v1/status` says and asks for nothing else.
//!
//! Its policy lets the browser run its own script, named by its hash, and nothing besides: not a handler that somebody
//! hid in the name of a pod, nothing from elsewhere, and not within the page of another site.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page.html");

static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        source("script"),
        source("style"),
    )
});

/// What a policy calls the text of the page's one element of this name.
fn source(name: &str) -> String {
    let begin = PAGE.split_once(&format!("<{name}>")).map_or("", |(_, rest)| rest);
    let text = begin.split_once(&format!("</{name}>")).map_or("", |(text, _)| text);
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

/// The page.
pub(super) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // It goes with the daemon that it came from.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere_and_makes_no_markup_of_text() {
        for elsewhere in ["src=", "@import", "url(", "https://", "<link rel=\"stylesheet\""] {
            assert!(!PAGE.contains(elsewhere), "{elsewhere}");
        }
        for sink in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval("]
        {
            assert!(!PAGE.contains(sink), "{sink}");
        }
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!(PAGE.matches("<style").count(), 1);
    }

    #[test]
    fn the_policy_names_the_script_and_the_style_by_their_hashes_alone() {
        assert!(!POLICY.contains("unsafe") && !POLICY.contains("http") && !POLICY.contains('*'));
        assert_eq!(POLICY.matches("'sha256-").count(), 2);
        // `printf '' | openssl dgst -sha256 -binary | base64`: what an element that is not found would have.
        assert!(!POLICY.contains("47DEQpj8HBSa"), "{}", *POLICY);
    }
}
