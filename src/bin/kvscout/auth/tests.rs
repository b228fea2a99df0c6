//! Callers and what they may do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;
use crate::config::Flags;

const SCORER: &str = "s0123456789abcdef0123456789abcdef";
const TENANT: &str = "t0123456789abcdef0123456789abcdef";
const ROOT: &str = "r0123456789abcdef0123456789abcdef";

fn secret(name: &str, text: &str, mode: u32) -> PathBuf {
    let path = std::env::temp_dir().join(format!("kvscout-auth-{}-{name}", std::process::id()));
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn access(file: &str) -> Result<Access, String> {
    let config = Config::from_sources(Some(file), &|_| None, &Flags::default()).unwrap();
    Access::new(&config)
}

fn three(name: &str) -> Access {
    let path = |who: &str, token| secret(&format!("{name}-{who}"), token, 0o600);
    let (scorer, tenant, root) =
        (path("scorer", SCORER), path("tenant", TENANT), path("root", ROOT));
    access(&format!(
        "[auth]\ntoken_file = {root:?}\n\
         [[caller]]\nname = \"router\"\ntoken_file = {scorer:?}\nallows = [\"score\"]\n\
         [[caller]]\nname = \"a\"\ntoken_file = {tenant:?}\nallows = [\"score\", \"change\"]\ntenant = \"a\"\n\
         [[caller]]\nname = \"mesh\"\ncertificate = \"spiffe://k/sa/router\"\nallows = [\"pick\"]\n\
         [tls]\ncertificate = \"c\"\nkey = \"k\"\nclient_ca = \"a\"\n"
    ))
    .unwrap()
}

fn asks(access: &Access, token: &str, guard: Guard) -> Result<Leave, Denied> {
    let header = format!("Bearer {token}");
    access.admit(guard, Shown { authorization: Some(header.as_bytes()), certificate: None })
}

#[test]
fn who_is_known_may_do_what_it_is_allowed_and_no_more() {
    let access = three("classes");
    let score = Guard::Tenant(Class::Score);
    assert_eq!(access.admit(Guard::Open, Shown::default()), Ok(Leave::default()));
    assert_eq!(access.admit(score, Shown::default()), Err(Denied::Anonymous));
    assert_eq!(asks(&access, SCORER, score), Ok(Leave::default()));
    for class in [Class::Pick, Class::Read, Class::Change, Class::Admin] {
        let guard = Guard::Everything(class);
        assert_eq!(asks(&access, SCORER, guard), Err(Denied::Class(class)));
        assert_eq!(asks(&access, ROOT, guard), Ok(Leave::default()));
    }
    for wrong in ["", "x", &SCORER[1..], &format!("{SCORER}0"), &SCORER.to_uppercase()] {
        assert_eq!(asks(&access, wrong, score), Err(Denied::Unknown), "{wrong}");
    }
    let basic = Shown { authorization: Some(b"Basic eDp5"), certificate: None };
    assert_eq!(access.admit(score, basic), Err(Denied::Unknown));
}

#[test]
fn who_is_bound_to_a_tenant_reaches_nothing_that_reaches_all() {
    let access = three("bound");
    let leave = Leave { tenant: Some("a".into()) };
    assert_eq!(asks(&access, TENANT, Guard::Tenant(Class::Change)), Ok(leave));
    assert_eq!(asks(&access, TENANT, Guard::Everything(Class::Change)), Err(Denied::Bound));
}

#[test]
fn a_certificate_is_known_by_its_names_and_a_token_beside_it_counts() {
    let access = three("certificate");
    let names = ["router.llm".to_owned(), "spiffe://k/sa/router".to_owned()];
    let with = |names, token: Option<&'static [u8]>| Shown {
        certificate: Some(names),
        authorization: token,
    };
    let pick = Guard::Tenant(Class::Pick);
    assert_eq!(access.admit(pick, with(&names, None)), Ok(Leave::default()));
    assert_eq!(access.admit(pick, with(&names[..1], None)), Err(Denied::Anonymous));
    let wrong = Some(&b"Bearer wrong"[..]);
    assert_eq!(access.admit(pick, with(&names, wrong)), Err(Denied::Unknown));
    let score = Guard::Tenant(Class::Score);
    assert_eq!(access.admit(score, with(&names, None)), Err(Denied::Class(Class::Score)));
}

#[test]
fn what_is_open_asks_for_nothing() {
    let root = secret("open", ROOT, 0o640);
    let access = access(&format!("[auth]\ntoken_file = {root:?}\nopen = [\"score\"]\n")).unwrap();
    assert_eq!(access.admit(Guard::Tenant(Class::Score), Shown::default()), Ok(Leave::default()));
    assert!(access.admit(Guard::Everything(Class::Read), Shown::default()).is_err());
    let nobody = Access::default();
    assert!(nobody.admit(Guard::Everything(Class::Admin), Shown::default()).is_ok());
}

#[test]
fn a_token_file_that_cannot_be_used_is_an_error_that_does_not_tell_the_token() {
    let error = |name: &str, text: &str, mode| {
        let path = secret(name, text, mode);
        let error = access(&format!("[auth]\ntoken_file = {path:?}")).unwrap_err();
        assert!(error.contains(&*path.to_string_lossy()), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        error
    };
    assert!(error("short", "hunter2\n", 0o600).contains("32 to 4096 characters, this one 7"));
    assert!(error("empty", "# none\n\n", 0o600).contains("has no token"));
    assert!(error("spaces", &"hunter2 ".repeat(6), 0o600).contains("no spaces"));
    for mode in [0o604, 0o622, 0o644, 0o660] {
        assert!(error("mode", ROOT, mode).contains("others may read or change it"), "{mode:o}");
    }
    let missing = access("[auth]\ntoken_file = \"/nowhere/token\"").unwrap_err();
    assert!(missing.contains("/nowhere/token"), "{missing}");
    let path = secret("same", ROOT, 0o600);
    let twice = format!(
        "[auth]\ntoken_file = {path:?}\n[[caller]]\nname = \"b\"\ntoken_file = {path:?}\nallows = [\"score\"]"
    );
    assert!(access(&twice).unwrap_err().contains("the same token as caller \"auth.token_file\""));
}

#[test]
fn a_file_that_changes_is_read_again_and_one_that_is_gone_lets_nobody_in() {
    let path = secret("change", ROOT, 0o600);
    let access = access(&format!("[auth]\ntoken_file = {path:?}")).unwrap();
    let guard = Guard::Everything(Class::Admin);
    // Both for a while, so that clients can follow.
    fs::write(&path, format!("{ROOT}\n{SCORER}\n")).unwrap();
    access.refresh();
    assert!(asks(&access, ROOT, guard).is_ok() && asks(&access, SCORER, guard).is_ok());
    fs::write(&path, "short").unwrap();
    access.refresh();
    assert!(asks(&access, SCORER, guard).is_ok(), "what cannot be used changes nothing");
    fs::write(&path, format!("{SCORER}\n")).unwrap();
    access.refresh();
    assert_eq!(asks(&access, ROOT, guard), Err(Denied::Unknown));
    assert!(asks(&access, SCORER, guard).is_ok());
    fs::remove_file(&path).unwrap();
    access.refresh();
    assert_eq!(asks(&access, SCORER, guard), Err(Denied::Unknown));
}
