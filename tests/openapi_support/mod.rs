//! An OpenAPI document, and the part of JSON Schema that it uses.

use std::collections::BTreeSet;

use serde_json::Value;

/// Keywords that are checked, or say nothing about a value's validity.
const KNOWN: [&str; 17] = [
    "$ref",
    "additionalProperties",
    "anyOf",
    "default",
    "description",
    "enum",
    "format",
    "items",
    "maxItems",
    "maxProperties",
    "maximum",
    "minimum",
    "properties",
    "required",
    "type",
    "minItems",
    "summary",
];

pub(crate) struct Description<'a> {
    document: &'a Value,
}

impl<'a> Description<'a> {
    pub(crate) fn new(document: &'a Value) -> Description<'a> {
        assert_eq!(document["openapi"], "3.1.0");
        Description { document }
    }

    /// Paths with their operation of this method.
    pub(crate) fn operations(&self, method: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let paths = self.document["paths"].as_object().unwrap();
        paths.iter().filter_map(move |(path, item)| Some((path.as_str(), item.get(method)?)))
    }

    /// The examples of a request's body.
    pub(crate) fn examples(
        &self,
        operation: &'a Value,
    ) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let examples = &operation["requestBody"]["content"]["application/json"]["examples"];
        let examples = examples.as_object().expect("an example");
        examples.iter().map(|(name, example)| (name.as_str(), &example["value"]))
    }

    #[track_caller]
    pub(crate) fn check_body(&self, path: &str, operation: &Value, body: &Value) {
        assert_eq!(self.wrong_body(operation, body), None, "{path}: {body}");
    }

    /// What is wrong with a body.
    pub(crate) fn wrong_body(&self, operation: &Value, body: &Value) -> Option<String> {
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        self.wrong(schema, body, "").err()
    }

    #[track_caller]
    pub(crate) fn check_answer(
        &self,
        path: &str,
        operation: &Value,
        status: u16,
        answer: Option<&Value>,
    ) {
        let responses = &operation["responses"];
        let response = responses.get(status.to_string()).unwrap_or(&responses["default"]);
        let Some(json) = response["content"].get("application/json") else {
            assert!(response["content"].is_object(), "{path}: {status} is not described");
            return;
        };
        let answer = answer.unwrap_or_else(|| panic!("{path}: no JSON"));
        let wrong = self.wrong(&json["schema"], answer, "").err();
        assert_eq!(wrong, None, "{path}: {status} {answer}");
    }

    fn wrong(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let Some(keywords) = schema.as_object() else { return Ok(()) };
        let unknown: BTreeSet<&str> =
            keywords.keys().map(String::as_str).filter(|key| !KNOWN.contains(key)).collect();
        assert!(unknown.is_empty(), "not checked: {unknown:?}");
        if let Some(reference) = keywords.get("$ref") {
            let name = reference.as_str().unwrap().strip_prefix('#').unwrap();
            let schema = self.document.pointer(name);
            return self.wrong(schema.unwrap_or_else(|| panic!("no {name}")), value, at);
        }
        if let Some(choices) = keywords.get("anyOf") {
            let wrong: Vec<String> = (choices.as_array().unwrap().iter())
                .map_while(|choice| self.wrong(choice, value, at).err())
                .collect();
            if wrong.len() == choices.as_array().unwrap().len() {
                return Err(format!("{at}: none of {wrong:?}"));
            }
        }
        if let Some(kinds) = keywords.get("type") {
            let kinds = kinds.as_array().cloned().unwrap_or_else(|| vec![kinds.clone()]);
            if !kinds.iter().any(|kind| is(kind.as_str().unwrap(), value)) {
                return Err(format!("{at}: no {kinds:?}"));
            }
        }
        if let Some(allowed) = keywords.get("enum")
            && !allowed.as_array().unwrap().contains(value)
        {
            return Err(format!("{at}: none of {allowed}"));
        }
        let bound = |name: &str| keywords.get(name).and_then(Value::as_f64);
        if let Some(number) = value.as_f64()
            && (bound("minimum").is_some_and(|least| number < least)
                || bound("maximum").is_some_and(|most| number > most))
        {
            return Err(format!("{at}: out of range"));
        }
        if let Some(list) = value.as_array() {
            if bound("minItems").is_some_and(|least| (list.len() as f64) < least) {
                return Err(format!("{at}: too few"));
            }
            if bound("maxItems").is_some_and(|most| list.len() as f64 > most) {
                return Err(format!("{at}: too many"));
            }
            let items = keywords.get("items").unwrap_or(&Value::Null);
            for (n, item) in list.iter().enumerate() {
                self.wrong(items, item, &format!("{at}[{n}]"))?;
            }
        }
        if let Some(object) = value.as_object() {
            for name in keywords.get("required").and_then(Value::as_array).into_iter().flatten() {
                if !object.contains_key(name.as_str().unwrap()) {
                    return Err(format!("{at}: no {name}"));
                }
            }
            let more = keywords.get("additionalProperties").unwrap_or(&Value::Null);
            for (name, field) in object {
                let at = format!("{at}.{name}");
                match keywords.get("properties").and_then(|known| known.get(name)) {
                    Some(schema) => self.wrong(schema, field, &at)?,
                    None if *more == Value::Bool(false) => return Err(format!("{at}: not known")),
                    None => self.wrong(more, field, &at)?,
                }
            }
        }
        Ok(())
    }
}

fn is(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type {other}"),
    }
}
