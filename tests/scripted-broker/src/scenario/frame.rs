//! Frames as a scenario writes them: the JSON form of protobuf with the field names of the .proto files, 64-bit numbers
//! as numbers, and bytes as text.
use std::sync::LazyLock;

use anyhow::{Context as _, anyhow, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, SerializeOptions};
use serde_json::{Map, Value};

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(bananas_proto::DESCRIPTOR_SET).expect("the descriptors are valid"));

fn descriptor(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(&format!("bananas.v1.{name}"))
        .expect("the API has this message")
}

/// A message of the API from its JSON form.
pub(super) fn parse<M: Message + Default>(name: &str, mut value: Value) -> anyhow::Result<M> {
    let descriptor = descriptor(name);
    each_bytes(&mut value, &descriptor, |text| STANDARD.encode(text));
    let message = DynamicMessage::deserialize(descriptor, &value).with_context(|| format!("{name} {value}"))?;
    Ok(M::decode(&*message.encode_to_vec())?)
}

/// The JSON form of a message of the API, fields with their default value included.
pub(super) fn show(name: &str, message: &impl Message) -> anyhow::Result<Value> {
    let descriptor = descriptor(name);
    let message = DynamicMessage::decode(descriptor.clone(), &*message.encode_to_vec())?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(false)
        .skip_default_fields(false);
    let mut value = message.serialize_with_options(serde_json::value::Serializer, &options)?;
    each_bytes(&mut value, &descriptor, |text| {
        String::from_utf8_lossy(&STANDARD.decode(text).unwrap_or_default()).into_owned()
    });
    Ok(value)
}

/// Changes the text of every field of type bytes.
fn each_bytes(value: &mut Value, message: &MessageDescriptor, change: fn(&str) -> String) {
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        let Some(field) = message.get_field_by_name(name) else {
            continue;
        };
        let values = match value {
            Value::Array(values) => values.iter_mut().collect(),
            one => vec![one],
        };
        for value in values {
            match (field.kind(), value) {
                (Kind::Bytes, Value::String(text)) => *text = change(text),
                (Kind::Message(inner), value) => each_bytes(value, &inner, change),
                _ => {}
            }
        }
    }
}

/// The name of the frame in a value like `{ settle: {..} }`, and its fields.
pub(super) fn one(frame: &Value) -> anyhow::Result<(&str, &Value)> {
    let fields = frame.as_object().ok_or_else(|| anyhow!("{frame} is no frame"))?;
    let mut fields = fields.iter();
    match (fields.next(), fields.next()) {
        (Some((name, content)), None) => Ok((name, content)),
        _ => bail!("{frame} is not one frame"),
    }
}

/// Puts these fields over others.
pub(super) fn over(mut base: Value, fields: &Map<String, Value>) -> Value {
    if let Value::Object(base) = &mut base {
        base.extend(fields.clone());
    }
    base
}

/// What `actual` lacks of what `expected` names. Fields that are not named do not matter, `null` means absent, a text
/// that ends with `...` names the beginning, and lists of texts may be in any order.
pub(super) fn difference(place: &str, expected: &Value, actual: &Value) -> Option<String> {
    let different = || Some(format!("{place} is {actual} instead of {expected}"));
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => expected.iter().find_map(|(name, expected)| {
            let actual = actual.get(name).unwrap_or(&Value::Null);
            difference(&format!("{place}.{name}"), expected, actual)
        }),
        (Value::Array(wanted), Value::Array(found)) => {
            if wanted.len() != found.len() {
                return different();
            }
            let (wanted, found) = (in_order(wanted), in_order(found));
            let mut pairs = wanted.iter().zip(&found).enumerate();
            pairs.find_map(|(index, (wanted, found))| difference(&format!("{place}[{index}]"), wanted, found))
        }
        (Value::Number(wanted), Value::Number(found)) if wanted.as_f64() == found.as_f64() => None,
        (Value::String(wanted), Value::String(found))
            if wanted.strip_suffix("...").is_some_and(|start| found.starts_with(start)) =>
        {
            None
        }
        (expected, actual) if expected == actual => None,
        _ => different(),
    }
}

/// A list as it is, or sorted if it has nothing but texts.
fn in_order(list: &[Value]) -> Vec<&Value> {
    let mut list: Vec<&Value> = list.iter().collect();
    if list.iter().all(|value| value.is_string()) {
        list.sort_unstable_by_key(|value| value.as_str());
    }
    list
}

#[cfg(test)]
mod tests {
    use bananas_proto::server as wire;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_frame_survives_its_json_form() {
        let frame = json!({"settle_results": {"sequence": 7, "results": [{"state": "JOB_STATE_DEAD"}]}});
        let parsed: wire::SubscribeResponse = parse("SubscribeResponse", frame.clone()).unwrap();
        let shown = show("SubscribeResponse", &parsed).unwrap();
        assert_eq!(difference("frame", &frame, &shown), None);
        let cancel = json!({"cancel": {"lease_token": "a b", "grace": "10s"}});
        let parsed: wire::SubscribeResponse = parse("SubscribeResponse", cancel.clone()).unwrap();
        let Some(wire::subscribe_response::Frame::Cancel(inner)) = &parsed.frame else {
            panic!("{parsed:?}")
        };
        assert_eq!(inner.lease_token, "a b");
        assert_eq!(
            difference("frame", &cancel, &show("SubscribeResponse", &parsed).unwrap()),
            None
        );
    }

    #[test]
    fn a_field_that_the_api_does_not_have_is_refused() {
        let frame = json!({"cancel": {"leese_token": "a"}});
        assert!(parse::<wire::SubscribeResponse>("SubscribeResponse", frame).is_err());
    }

    #[test]
    fn only_what_is_named_is_compared() {
        let actual = json!({"a": [{"b": "one two", "c": 0.0}], "tokens": ["y", "x"], "null": null});
        for same in [
            json!({}),
            json!({"a": [{"b": "one..."}]}),
            json!({"a": [{"c": 0}], "absent": null}),
            json!({"tokens": ["x", "y"]}),
        ] {
            assert_eq!(difference("f", &same, &actual), None, "{same}");
        }
        for (other, place) in [
            (json!({"a": []}), "f.a is"),
            (json!({"a": [{"b": "one"}]}), "f.a[0].b is"),
            (json!({"absent": 1}), "f.absent is null instead of 1"),
        ] {
            let text = difference("f", &other, &actual).unwrap();
            assert!(text.starts_with(place), "{text}");
        }
    }
}
