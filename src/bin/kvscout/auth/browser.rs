//! What a browser sends for somebody else's page. A page may make its browser ask any address that this reaches, and
//! though it cannot read the answer, what was to be changed is changed. And a page whose name leads here a moment after
//! it was loaded from elsewhere (DNS rebinding) reads the answers, too.
//!
//! Browsers say for which page they ask, and under which name; programs that are no browser say nothing of pages.

use std::fmt;
use std::net::Ipv6Addr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Uri, header};

use super::Class;

/// Set by browsers alone, and by no script: how far the page's site is from here.
const SITE: &str = "sec-fetch-site";

/// More of a name or an origin says no more.
const SHOWN: usize = 100;

/// Why a request is refused that a browser may have made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// It is made for a page that does not come from here: the header that says so.
    Page(String),
    /// It calls us by a name, which may be anybody's, where nobody says who it is for this reason.
    Host(String, Nobody),
}

/// Why nobody says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nobody {
    /// There are no callers.
    IsKnown,
    /// There are; what is asked for is of a class that everybody may ask for.
    IsAsked(Class),
}

impl Nobody {
    /// What an operator changes so that somebody says it.
    fn is_changed_by(self) -> String {
        match self {
            Nobody::IsKnown => "configure callers (auth.token_file, [[caller]])".to_owned(),
            Nobody::IsAsked(class) => {
                format!("take class '{class}' out of auth.open, and show a credential")
            }
        }
    }
}

impl Foreign {
    /// The stable label.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Foreign::Page(_) => "foreign_origin",
            Foreign::Host(..) => "foreign_host",
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Foreign::Page(header) => write!(
                f,
                "a browser asks this for a page from elsewhere ({header}), which may neither change nor see what is \
                 here; open the address itself, or have a proxy that is to let pages in drop 'origin' and \
                 'sec-fetch-site'"
            ),
            Foreign::Host(host, nobody) => write!(
                f,
                "host '{host}' is a name that a web page may have, too; where nobody says who it is, a loopback address \
                 is asked as localhost or by its number: do so, or {}",
                nobody.is_changed_by()
            ),
        }
    }
}

/// Lets a request through unless a browser made it for a page from elsewhere. Where only this machine reaches us and
/// `nobody` says who it is, it may not call us by any name.
pub(crate) fn check(uri: &Uri, headers: &HeaderMap, nobody: Option<Nobody>) -> Result<(), Foreign> {
    let is_elsewhere = |value: &&HeaderValue| {
        let value = value.as_bytes();
        ![&b"same-origin"[..], b"none"].iter().any(|own| value.eq_ignore_ascii_case(own))
    };
    if let Some(site) = headers.get_all(SITE).iter().find(is_elsewhere) {
        return Err(Foreign::Page(format!("{SITE}: {}", shown(site))));
    }
    // HTTP/2 has the host in the address.
    let named = uri.authority().map(|authority| HeaderValue::from_str(authority.as_str()));
    let named: Vec<HeaderValue> = named.into_iter().flatten().collect();
    let hosts = || headers.get_all(header::HOST).iter().chain(&named);
    for origin in headers.get_all(header::ORIGIN) {
        if hosts().next().is_none() || !hosts().all(|host| is_origin_of(origin, host)) {
            return Err(Foreign::Page(format!("origin: {}", shown(origin))));
        }
    }
    let Some(nobody) = nobody else { return Ok(()) };
    match hosts().find(|host| !is_nobodys(host)) {
        Some(host) => Err(Foreign::Host(shown(host), nobody)),
        None => Ok(()),
    }
}

/// Whether a page of this origin came from this host. A browser writes both alike, and leaves out the port that is the
/// scheme's own; a proxy may write it.
fn is_origin_of(origin: &HeaderValue, host: &HeaderValue) -> bool {
    let (Ok(origin), Ok(host)) = (origin.to_str(), host.to_str()) else { return false };
    let (origin, own_port) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://"))
    {
        (Some(rest), _) => (rest, ":80"),
        (_, Some(rest)) => (rest, ":443"),
        // That of a file, or of a page that may not say: "null".
        _ => return false,
    };
    let short = |at: &str| at.strip_suffix(own_port).unwrap_or(at).to_ascii_lowercase();
    short(origin) == short(host)
}

/// Whether this is `localhost` or the number of an address, to neither of which a page can lead a name of its own.
fn is_nobodys(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else { return false };
    if host.is_empty() {
        // No browser's.
        return true;
    }
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let host = authority.host();
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().is_ok();
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    // What ends in a number is an address or nothing (URL Standard, "ends in a number checker"): 127.1, 0x7f000001.
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    host.eq_ignore_ascii_case("localhost") || is_number(last) || hex.is_some_and(is_hex)
}

fn shown(value: &HeaderValue) -> String {
    let text = String::from_utf8_lossy(value.as_bytes());
    text.chars().filter(|c| !c.is_control()).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    /// What becomes of a request with these headers, as text, to a listener that only localhost and numbers lead to.
    fn asked(headers: &[(&str, &str)]) -> Result<(), &'static str> {
        outcome("/register", headers, false)
    }

    fn outcome(uri: &str, headers: &[(&str, &str)], any_name: bool) -> Result<(), &'static str> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let nobody = (!any_name).then_some(Nobody::IsKnown);
        check(&uri.parse().unwrap(), &map, nobody).map_err(|foreign| foreign.reason())
    }

    #[test]
    fn programs_and_the_own_page_are_let_through() {
        let host = ("host", "127.0.0.1:13333");
        assert_eq!(asked(&[]), Ok(()), "HTTP/1.0");
        assert_eq!(asked(&[host]), Ok(()));
        assert_eq!(asked(&[host, ("origin", "http://127.0.0.1:13333")]), Ok(()));
        for site in ["same-origin", "none"] {
            assert_eq!(asked(&[host, ("sec-fetch-site", site)]), Ok(()), "{site}");
        }
        for (host, origin) in [
            ("LOCALHOST:13333", "http://localhost:13333"),
            ("localhost", "http://localhost"),
            ("localhost:80", "http://localhost"),
            ("localhost", "https://localhost"),
            ("localhost:443", "https://localhost"),
            ("[::1]:80", "http://[::1]"),
        ] {
            assert_eq!(asked(&[("host", host), ("origin", origin)]), Ok(()), "{host} {origin}");
        }
    }

    #[test]
    fn a_page_from_elsewhere_is_refused_whatever_it_is_called() {
        for origin in [
            "http://evil.example",
            "https://127.0.0.1",
            "http://127.0.0.1",
            "http://127.0.0.1:13334",
            "http://127.0.0.1:133330",
            "http://localhost:13333",
            "http://127.0.0.1:13333.evil.example",
            "ftp://127.0.0.1:13333",
            "127.0.0.1:13333",
            "null",
            "file://",
            "",
        ] {
            let headers = [("host", "127.0.0.1:13333"), ("origin", origin)];
            for any_name in [false, true] {
                let foreign = outcome("/register", &headers, any_name);
                assert_eq!(foreign, Err("foreign_origin"), "{origin}");
            }
        }
        for site in ["cross-site", "same-site", "Cross-Site", "anything new"] {
            let headers = [("host", "127.0.0.1:13333"), ("sec-fetch-site", site)];
            assert_eq!(asked(&headers), Err("foreign_origin"), "{site}");
        }
        let own = ("origin", "http://127.0.0.1:13333");
        assert_eq!(asked(&[own]), Err("foreign_origin"), "it says of no host that it is its own");
        let both = [("host", "127.0.0.1:13333"), own, ("origin", "http://evil.example")];
        assert_eq!(asked(&both), Err("foreign_origin"));
    }

    #[test]
    fn over_http_2_the_host_is_that_of_the_address() {
        let at = |origin| outcome("https://kvscout:50051/x.Y/Z", &[("origin", origin)], true);
        assert_eq!(at("https://kvscout:50051"), Ok(()));
        assert_eq!(at("https://evil.example"), Err("foreign_origin"));
    }

    #[test]
    fn only_what_no_page_can_be_called_leads_to_a_loopback_address() {
        for host in [
            "localhost",
            "localhost:13333",
            "LocalHost.",
            "127.0.0.1",
            "127.1.2.3:1",
            "127.1:13333",
            "0x7f000001",
            "2130706433",
            "10.0.0.7:13333",
            "[::1]:13333",
            "[::ffff:127.0.0.1]",
            "",
        ] {
            assert_eq!(asked(&[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:13333",
            "kvscout",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "notlocalhost",
            "1.1.1.1e",
            "0xg",
            "[evil]",
            "a b",
        ] {
            assert_eq!(asked(&[("host", host)]), Err("foreign_host"), "{host}");
            assert_eq!(outcome("/register", &[("host", host)], true), Ok(()), "{host}");
        }
        // The address says one thing, the header another.
        let absolute = outcome("http://evil.example/register", &[("host", "localhost")], false);
        assert_eq!(absolute, Err("foreign_host"));
    }

    #[test]
    fn what_is_shown_of_a_header_is_short() {
        let long = HeaderValue::from_str(&"x".repeat(5_000)).unwrap();
        assert_eq!(shown(&long).len(), SHOWN);
    }
}
