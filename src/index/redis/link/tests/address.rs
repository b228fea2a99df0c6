//! Addresses and options: what is accepted, what an error says, what is never shown.

use std::time::Duration;

use crate::index::redis::link::address::{Endpoint, Place};
use crate::index::redis::link::{Link, Secret, StoreAddress, StoreOptions};

fn parse(text: &str) -> StoreAddress {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn tcp(host: &str, port: u16) -> Endpoint {
    Endpoint::Tcp(host.into(), port)
}

#[test]
fn an_address_says_which_servers_how_and_as_whom() {
    let address = parse("redis://kv:p%40ss@store.example:7000/3");
    assert_eq!(address.place, Place::One(tcp("store.example", 7000)));
    assert_eq!((address.tls, address.user.as_deref(), address.database), (false, Some("kv"), 3));
    assert_eq!(&*address.password.unwrap().read().unwrap(), "p@ss");

    assert_eq!(parse("valkey://h").place, Place::One(tcp("h", 6379)));
    assert!(parse("rediss://h").tls && parse("valkeys://h").tls);
    assert_eq!(parse("redis://[::1]:7").place, Place::One(tcp("::1", 7)));
    assert_eq!(parse("redis://[::1]").place, Place::One(tcp("::1", 6379)));
    assert_eq!(
        parse("valkeys+cluster://a,b:7001,c/").place,
        Place::Cluster(vec![tcp("a", 6379), tcp("b", 7001), tcp("c", 6379)])
    );
    let sentinels = vec![tcp("a", 26_379), tcp("b", 5)];
    let address = parse("redis+sentinel://:pw@a,b:5/my%20master/2");
    assert_eq!(address.place, Place::Sentinel { sentinels, master: "my master".into() });
    assert_eq!((address.database, address.user), (2, None));
    for text in [
        "unix:/r/s?db=4&user=kv",
        "redis+unix:///r/s?user=kv&db=4",
        "valkey+unix:/r/s?db=4&user=kv",
    ] {
        let address = parse(text);
        assert_eq!(address.place, Place::One(Endpoint::Unix("/r/s".into())), "{text}");
        assert_eq!((address.user.as_deref(), address.database), (Some("kv"), 4), "{text}");
    }
}

#[test]
fn an_address_that_is_printed_can_be_parsed_and_shows_no_password() {
    for (text, shown) in [
        ("valkey://h", "redis://h:6379/0"),
        ("redis://kv:hunter2@h:1/2", "redis://kv:***@h:1/2"),
        ("rediss+cluster://:hunter2@a,[::1]:2", "rediss+cluster://:***@a:6379,[::1]:2"),
        ("redis+sentinel://kv@a/main", "redis+sentinel://kv@a:26379/main/0"),
        ("unix:/s?pass=hunter2&user=kv", "unix:/s?db=0&user=kv&pass=***"),
    ] {
        let address = parse(text);
        assert_eq!(address.to_string(), shown);
        assert_eq!(parse(shown).place, address.place);
        assert!(!format!("{address:?} {address:#?}").contains("hunter2"));
    }
}

#[test]
fn a_wrong_address_is_refused_by_naming_the_part() {
    for (text, part) in [
        ("", "scheme"),
        ("localhost", "scheme"),
        ("http://h", "scheme"),
        ("redis+ring://h", "scheme"),
        ("rediss+unix:/s", "scheme"),
        ("redis:h", "\"://\""),
        ("redis://", "not a host"),
        ("redis://a,b", "redis+cluster"),
        ("redis+cluster://a,,b", "not a host"),
        ("redis+cluster://a/1", "database 0 only"),
        ("redis://h:0", "port"),
        ("redis://h:65536", "port"),
        ("redis://::1", "brackets"),
        ("redis://[::1", "closing ']'"),
        ("redis://[::1]x", "not a port"),
        ("redis://h/x", "database \"x\""),
        ("redis://h?db=1", "'?'"),
        ("redis+sentinel://h", "name of the master"),
        ("redis+sentinel://h/m/x", "database \"x\""),
        ("redis://%zz@h", "user"),
        ("redis://u:%f@h", "password"),
        ("unix:s", "absolute"),
        ("unix:/s?timeout=1", "db=, user= and pass="),
    ] {
        let error = text.parse::<StoreAddress>().unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(part), "{text:?}: {error}");
    }
}

#[test]
fn no_error_repeats_a_password_however_the_address_is_wrong() {
    for text in [
        "redis://:hunter2@",
        "redis://:hunter2@h:port",
        "redis://:hunter2/@h",
        "redis://u:hunter2?@h",
        "redis://u:hunter2#@h",
        "redis://u:a/hunter2@h",
        "redis://u:hunter2@@h/x",
        "redis://u:hunter2%@h",
        "redis://u:hunter2",
        "redis:u:hunter2@h",
        "u:hunter2@h",
        "hunter2:x@h",
        "hunter2@h:1",
        "redis+cluster://u:hunter2@h/1",
        "unix:/s?pass=hunter2%",
        "unix:/s?password=hunter2",
        "unix:s?pass=hunter2",
    ] {
        let error = text.parse::<StoreAddress>().expect_err(text);
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{text:?}: {error}");
    }
}

#[test]
fn a_password_comes_from_a_file_or_a_variable_and_is_read_when_it_is_used() {
    let file = std::env::temp_dir().join(format!("kvs-secret-{}", std::process::id()));
    std::fs::write(&file, "hunter2\n").unwrap();
    let secret = Secret::file(&file);
    assert_eq!(&*secret.read().unwrap(), "hunter2");
    assert!(
        !format!("{secret:?}").contains("hunter2") && format!("{secret:?}").contains("kvs-secret")
    );
    std::fs::write(&file, "changed").unwrap();
    assert_eq!(&*secret.read().unwrap(), "changed");
    for (content, part) in [("\n".to_owned(), "is empty"), ("x".repeat(5000), "larger than 4096")] {
        std::fs::write(&file, content).unwrap();
        let error = secret.read().unwrap_err().to_string();
        assert!(
            error.contains(part) && error.contains("kvs-secret") && error.len() < 300,
            "{error}"
        );
    }
    std::fs::remove_file(&file).unwrap();
    let error = secret.read().unwrap_err();
    assert!(error.to_string().contains("kvs-secret"), "{error}");
    assert_eq!(&*Secret::variable("CARGO_PKG_NAME").read().unwrap(), "kvscout");
    let error = Secret::variable("KVSCOUT_NO_SUCH_VARIABLE").read().unwrap_err();
    assert!(error.to_string().contains("KVSCOUT_NO_SUCH_VARIABLE"), "{error}");
    assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_tried() {
    let refused = |address: &str, options: StoreOptions, part: &str| {
        let error = Link::open(parse(address), options).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    };
    let fine = StoreOptions::default;
    refused("redis://h", fine(), "tokio runtime");
    let runtime = super::runtime();
    let _context = runtime.enter();
    refused("redis://kv@h", fine(), "no password");
    refused("redis://h", StoreOptions { in_flight: 0, ..fine() }, "in_flight");
    refused("redis://h", StoreOptions { late_limit: 0, ..fine() }, "late_limit");
    refused("redis://h", StoreOptions { read_deadline: Duration::ZERO, ..fine() }, "read_deadline");
    refused("redis://h", StoreOptions { retry_max: Duration::ZERO, ..fine() }, "retry_max");
    let nowhere = || Some("/nonexistent/file".into());
    refused("rediss://h", StoreOptions { tls_ca: nowhere(), ..fine() }, "/nonexistent/file");
    let password = nowhere().map(|path: std::path::PathBuf| Secret::file(path));
    refused("redis://h", StoreOptions { password, ..fine() }, "/nonexistent/file");
}
