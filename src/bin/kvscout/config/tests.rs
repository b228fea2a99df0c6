//! Configuration from its three sources, and its documentation.

use kvscout::ingest::zmq::Mode;

use super::model::TokenizerSource;
use super::*;

fn nothing(_: &str) -> Option<String> {
    None
}

fn from_file(text: &str) -> Result<Config, ConfigError> {
    Config::from_sources(Some(text), &nothing, &Flags::default())
}

#[track_caller]
fn error_of(text: &str) -> String {
    let message = from_file(text).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = "listen = \"127.0.0.1:1\"\nseeds = [7]\n[limits]\nmax_body_bytes = 5";
    let environment = |name: &str| match name {
        "KVSCOUT_LISTEN" => Some("127.0.0.1:2".to_owned()),
        "KVSCOUT_LIMITS_MAX_BODY_BYTES" => Some("6".to_owned()),
        _ => None,
    };
    let flags =
        Flags { keys: vec![("listen", vec!["127.0.0.1:3".to_owned()])], ..Flags::default() };
    let config = Config::from_sources(Some(file), &environment, &flags).unwrap();
    assert_eq!((config.listen.port(), config.limits.max_body.get()), (3, 6));
    assert_eq!(config.seeds, ["7"]);
}

#[test]
fn what_is_printed_reads_back_as_itself() {
    let file = r#"
        seeds = ["1", "2"]
        trust_topics = true
        topic_bind = "tcp://*:5557"
        [zmq]
        heartbeat_interval = ""
        topic = "kv@"
        [[source]]
        name = "pod-1"
        endpoint = "tcp://pod-1:5557"
        replay = "tcp://pod-1:6557"
        model = "m"
        ranks = 2
        vllm = "0.33.0"
        block_size = 64
        [[discover]]
        name = "vllm"
        dns = "vllm.default.svc.:5557"
        family = "ipv6"
        nameserver = "[::1]:53"
        pod_port = 8000
        labels = ["role=prefill"]
        [[adapter]]
        name = "sql"
        model = "m"
        path = "/adapters/sql"
        [models."org/m-1.5"]
        tokenizer = "/models/m/tokenizer.json"
        content_format = "openai"
        [models.m]
        tokenizer = "org/m"
        tokenizer_memory = 0
    "#;
    let config = from_file(file).unwrap();
    assert_eq!(config.zmq.heartbeat_interval, None);
    let printed = config.to_toml();
    assert_eq!(from_file(&printed).unwrap().to_toml(), printed);
    let defaults = Config::default().to_toml();
    assert_eq!(from_file(&defaults).unwrap().to_toml(), defaults);
}

#[test]
fn audits_are_on_unless_they_are_turned_off() {
    let every = |file: &str| from_file(file).unwrap().replay.audit;
    assert_eq!(every(""), Duration::from_secs(600));
    assert_eq!(every("[audit]\nevery = \"90s\""), Duration::from_secs(90));
    assert_eq!(every("[audit]\nevery = \"0s\""), Duration::ZERO);
    assert!(error_of("[audit]\nevery = 10").contains("a duration such as"));
}

#[test]
fn an_unknown_key_is_named_with_its_nearest_neighbour() {
    let message = error_of("[limits]\nmax_bodi_bytes = 1");
    assert_eq!(
        message,
        "unknown key \"limits.max_bodi_bytes\"; the nearest known one is \"limits.max_body_bytes\""
    );
    let message = error_of("[[source]]\nname = \"a\"\nendpoint = \"tcp://a:1\"\nrank = 2");
    assert_eq!(message, "source 1: unknown key \"rank\"; the nearest known one is \"ranks\"");
}

#[test]
fn a_wrong_value_is_named_with_what_would_be_right() {
    assert_eq!(
        error_of("listen = \"13333\""),
        "listen \"13333\": expected ADDRESS:PORT such as 127.0.0.1:13333 or [::1]:13333"
    );
    assert_eq!(error_of("[weights]\ngpu = -1"), "weights.gpu \"-1\": expected a number from 0");
    assert!(error_of("listen = ").starts_with("configuration file, line 1: "));
    assert_eq!(error_of("[[source]]\nname = \"a\""), "source 1: no endpoint");
    assert!(error_of("[ready]\nworkers = 1.5").contains("from 0 to 1"));
    assert!(error_of("[state]\ninterval = \"0s\"").contains("above 0"));
    assert!(error_of("[state]\nshare = true").contains("state.dir"));
    assert!(error_of("[state]\nfrom = \"http://a:1\"").contains("state.dir"));
    assert!(error_of("[state]\ndir = \"d\"\nfrom = \"a:1\"").contains("http://"));
    assert!(error_of("trust_topics = true").contains("topic_bind"));
    assert!(error_of("topic_bind = \"tcp://*:5557\"").contains("trust_topics"));
    let wildcard = error_of("[[source]]\nname = \"a\"\nendpoint = \"tcp://*:5557\"");
    assert!(wildcard.contains("mode = \"bind\""), "{wildcard}");
    let ranks = error_of("[[source]]\nname = \"a\"\nendpoint = \"tcp://a:65535\"\nranks = 2");
    assert!(ranks.contains("65536"), "{ranks}");
    let pool = |keys: &str| {
        error_of(&format!("[[source]]\nname = \"a\"\nendpoint = \"tcp://a:1\"\n{keys}"))
    };
    assert!(pool("hash_algorithm = \"md5\"").contains("--prefix-caching-hash-algo"));
    assert!(pool("hash_algorithm = \"builtin\"").contains("0.33.0 has no hash algorithm builtin"));
    assert!(pool("hash_algorithm = \"xxhash\"").contains("random"), "its root is not known");
    assert!(pool("hash_seed = \"0\"").contains("hash_algorithm"));
}

#[test]
fn a_source_flag_names_pod_endpoint_and_more() {
    let flags = Flags {
        sources: vec![
            "pod-1=tcp://10.0.0.7:5557,replay=tcp://10.0.0.7:6557".to_owned(),
            "pod-2=tcp://10.0.0.8:5557,ranks=4,model=other".to_owned(),
        ],
        model: Some("m".to_owned()),
        ..Flags::default()
    };
    let config = Config::from_sources(None, &nothing, &flags).unwrap();
    let [one, two] = &config.sources[..] else { panic!("{:?}", config.sources) };
    assert_eq!(
        (one.name.as_str(), one.model.as_deref(), one.mode),
        ("pod-1", Some("m"), Mode::Connect)
    );
    assert_eq!(one.replay.as_ref().unwrap().to_string(), "tcp://10.0.0.7:6557");
    assert_eq!((two.ranks.get(), two.model.as_deref()), (4, Some("other")));
    for wrong in
        ["pod-1", "pod-1=", "=tcp://a:1", "p=tcp://a", "p=tcp://a:1,replay", "p=tcp://a:1,x=1"]
    {
        let flags = Flags { sources: vec![wrong.to_owned()], ..Flags::default() };
        let error = Config::from_sources(None, &nothing, &flags).unwrap_err().to_string();
        assert!(error.starts_with(&format!("--source {wrong:?}")), "{error}");
    }
}

#[test]
fn a_later_source_of_the_same_name_replaces_the_earlier_one() {
    let file = "[[source]]\nname = \"pod-1\"\nendpoint = \"tcp://old:5557\"";
    let flags = Flags { sources: vec!["pod-1=tcp://new:5557".to_owned()], ..Flags::default() };
    let config = Config::from_sources(Some(file), &nothing, &flags).unwrap();
    assert_eq!(config.sources.len(), 1);
    assert_eq!(config.sources[0].endpoint.to_string(), "tcp://new:5557");
}

#[test]
fn a_model_has_a_tokenizer_from_files_or_from_its_engines() {
    let config = from_file("[models.\"org/m-1.5\"]\ntokenizer = \"org/m\"").unwrap();
    let [entry] = &config.models[..] else { panic!("{:?}", config.models) };
    assert_eq!(entry.name, "org/m-1.5");
    assert_eq!(entry.tokenizer, TokenizerSource::Files("org/m".to_owned()));
    let source = "[[source]]\nname = \"a\"\nendpoint = \"tcp://a:1\"\n";
    let engine = "[models.m]\ntokenizer = \"engine\"";
    for (model, serves) in [("", true), ("model = \"m\"\n", true), ("model = \"n\"\n", false)] {
        let file = format!("{source}http = \"http://a:8000\"\n{model}{engine}");
        let engines = from_file(&file).map(|config| config.engines_of("m").count());
        assert_eq!(engines.is_ok(), serves, "{engines:?}");
        assert!(!serves || engines == Ok(1));
    }
    let nowhere = error_of(&format!("{source}{engine}"));
    assert!(nowhere.contains("models.\"m\"") && nowhere.contains("http://host:port"), "{nowhere}");
}

#[test]
fn what_is_wrong_with_a_model_is_said_with_its_name() {
    assert_eq!(error_of("[models.m]\ntokenizer_memory = 5"), "models.\"m\": no tokenizer");
    assert_eq!(
        error_of("[models.m]\ntokenizer = \"\""),
        "models.\"m\", tokenizer \"\": expected a tokenizer.json, its folder, a name in the Hugging Face \
         cache, or \"engine\""
    );
    assert_eq!(
        error_of("[models.m]\ntokenizer = \"t\"\ncontent_format = \"text\""),
        "models.\"m\", content_format \"text\": expected auto, string or openai"
    );
    assert_eq!(
        error_of("[models.m]\ntokenizer = \"t\"\ntokenizer_memory = -1"),
        "models.\"m\", tokenizer_memory \"-1\": expected an integer from 0"
    );
    let unquoted = error_of("[models.org/m]\ntokenizer = \"t\"");
    assert!(unquoted.starts_with("configuration file, line 1: "), "{unquoted}");
    let dotted = error_of("[models.m-1.5]\ntokenizer = \"t\"");
    assert!(dotted.contains("models.\"m-1\"") && dotted.contains("in quotes"), "{dotted}");
    assert!(error_of("models = 5").contains("[models.NAME]"));
    assert!(error_of("[models]\nm = 5").contains("[models.NAME]"));
    let url = error_of("[[source]]\nname = \"a\"\nendpoint = \"tcp://a:1\"\nhttp = \"a:8000\"");
    assert_eq!(url, "source \"a\", http \"a:8000\": expected http://host:port");
}

#[test]
fn callers_that_contradict_themselves_are_named() {
    let caller = |keys: &str| format!("[[caller]]\nname = \"a\"\n{keys}\n");
    let token = "token_file = \"/t\"\nallows = [\"score\"]";
    for (text, said) in [
        (caller("allows = [\"score\"]"), "give one of token_file and certificate"),
        (caller(&format!("{token}\ncertificate = \"x\"")), "give one of token_file"),
        (caller("token_file = \"/t\""), "may do nothing: set allows"),
        (
            caller("token_file = \"/t\"\nallows = [\"scores\"]"),
            "score, pick, read, change and admin",
        ),
        (
            caller("token_file = \"/t\"\nallows = [\"read\"]\ntenant = \"t\""),
            "allows \"read\", which reaches all",
        ),
        (caller(token).repeat(2), "comes twice"),
        (caller("certificate = \"x\"\nallows = [\"score\"]"), "needs tls.client_ca"),
        ("[tls]\nkey = \"k\"".to_owned(), "go together"),
        ("[tls]\nclient_ca = \"k\"".to_owned(), "needs tls.certificate"),
        ("[auth]\nopen = [\"score\"]".to_owned(), "everything is open"),
        ("[dial]\nallow = [\"ten\", \"10.0.0/8\"]".to_owned(), "private, loopback, networks"),
    ] {
        let error = error_of(&text);
        assert!(error.contains(said), "{error}");
    }
}

/// Each key has a line `| `key` | default | ... |`, and no line names a key that is not there.
#[test]
fn the_documentation_lists_every_key_with_its_default_and_no_other() {
    let text = include_str!("../../../../docs/configuration.md");
    let mut documented: Vec<(String, String)> = Vec::new();
    let mut section = "";
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, key, default, _, ..] = cells[..] else { continue };
        let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`')) else {
            continue;
        };
        let key = match section {
            "`[[source]]`" => format!("source/{key}"),
            "`[[discover]]`" => format!("discover/{key}"),
            "`[[adapter]]`" => format!("adapter/{key}"),
            "`[[caller]]`" => format!("caller/{key}"),
            "`[models.NAME]`" => format!("models/{key}"),
            _ => key.to_owned(),
        };
        documented.push((key, default.trim_matches('`').to_owned()));
    }
    let config = Config::default();
    let written = |value: Option<Value>| value.map_or(String::new(), |value| value.to_string());
    let mut expected: Vec<(String, String)> =
        KEYS.iter().map(|key| (key.path.to_owned(), written((key.get)(&config)))).collect();
    let source = source::from_text("n=tcp://a:1", None, "").unwrap();
    let required = |path: &str| ["name", "endpoint"].contains(&path);
    expected.extend(source::KEYS.iter().map(|key| {
        let default = written((key.get)(&source));
        let default = if required(key.path) { "required".to_owned() } else { default };
        (format!("source/{}", key.path), default)
    }));
    let discover = discover::from_text("n=a.b:1", None, "").unwrap();
    expected.extend(discover::KEYS.iter().map(|key| {
        let default = match key.path {
            "name" | "dns" => "required".to_owned(),
            _ => written((key.get)(&discover)),
        };
        (format!("discover/{}", key.path), default)
    }));
    let adapter = adapter::from_table(toml::toml! { name = "n" model = "m" }, 0).unwrap();
    expected.extend(adapter::KEYS.iter().map(|key| {
        let default = match key.path {
            "name" | "model" => "required".to_owned(),
            _ => written((key.get)(&adapter)),
        };
        (format!("adapter/{}", key.path), default)
    }));
    let caller = CallerEntry::new("n");
    expected.extend(caller::KEYS.iter().map(|key| {
        let default = match key.path {
            "name" | "allows" => "required".to_owned(),
            _ => written((key.get)(&caller)),
        };
        (format!("caller/{}", key.path), default)
    }));
    let models = toml::toml! { m = { tokenizer = "t" } };
    let model = &model::from_tables(models.into()).unwrap()[0];
    expected.extend(model::KEYS.iter().map(|key| {
        let default = match key.path {
            "tokenizer" => "required".to_owned(),
            _ => written((key.get)(model)),
        };
        (format!("models/{}", key.path), default)
    }));
    documented.sort();
    expected.sort();
    assert_eq!(documented, expected);
}
