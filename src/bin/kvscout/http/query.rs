//! Parameters after the question mark, as the fields of a body.

use serde_json::{Map, Value};

use super::refusal::HttpError;

/// The parameters as a JSON object: those of `lists` are lists of texts, the others texts. One that is
/// given twice and is no list is refused.
pub(super) fn parameters(query: &str, lists: &[&str]) -> Result<Map<String, Value>, HttpError> {
    let mut object = Map::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let name = decoded(name).ok_or_else(|| HttpError::field("?", "a name is no UTF-8"))?;
        let value = decoded(value).ok_or_else(|| HttpError::field(&name, "is no UTF-8"))?;
        if lists.contains(&name.as_str()) {
            let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(Value::String(value));
            }
        } else if object.contains_key(&name) {
            return Err(HttpError::field(name, "given twice"));
        } else {
            object.insert(name, Value::String(value));
        }
    }
    Ok(object)
}

/// Text in which bytes may be written as `%20`, and a space as `+`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, tail @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                bytes.push(digit(*high) << 4 | digit(*low));
                rest = tail;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
    }
    String::from_utf8(bytes).ok()
}

fn digit(hex: u8) -> u8 {
    match hex {
        b'0'..=b'9' => hex - b'0',
        _ => (hex | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_are_decoded_and_lists_collected() {
        let query = "model=Qwen%2FQwen3-8B&a=x+y&b=%zz%4&labels=r%3a1&labels=s&c";
        let expected = json!({
            "model": "Qwen/Qwen3-8B", "a": "x y", "b": "%zz%4", "labels": ["r:1", "s"], "c": "",
        });
        assert_eq!(Value::Object(parameters(query, &["labels"]).unwrap()), expected);
    }

    #[test]
    fn what_is_given_twice_or_is_no_text_is_refused_by_name() {
        for query in ["model=a&model=b", "model=%ff"] {
            let error = serde_json::to_value(parameters(query, &[]).unwrap_err()).unwrap();
            assert_eq!(error["field"], "model", "{query}");
        }
    }
}
