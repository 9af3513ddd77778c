//! JSON, CBOR and protobuf: what was written is read, and noise is an error or an object within bounds.

use dhow_api::bounds::{MAX_DEPTH, measure};
use dhow_api::descriptor::{self, Message};
use dhow_api::registry::KINDS;
use dhow_api::{cbor, protobuf, strict_json};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::generate::{any_json, any_of};

/// Some kind's message, with its type header.
fn any_kind() -> impl Strategy<Value = (String, &'static str, &'static Message)> {
    proptest::sample::select(
        KINDS.iter().map(|kind| (kind.api_version(), kind.kind, kind.definition)).collect::<Vec<_>>(),
    )
    .prop_map(|(version, kind, definition)| (version, kind, descriptor::message(definition).unwrap()))
}

/// An object of some kind as the server has it: settled.
fn any_object() -> impl Strategy<Value = Value> {
    any_kind().prop_flat_map(|(version, kind, message)| {
        any_of(message, 4).prop_map(move |mut object| {
            object["apiVersion"] = json!(version);
            object["kind"] = json!(kind);
            assert!(descriptor::settle(message, &mut object).unwrap().is_empty(), "{object}");
            object
        })
    })
}

/// Bytes with a head that means something, so that more than the first is looked at.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![any::<u8>(), proptest::sample::select(vec![0x81, 0xa1, 0x9f, 0xbf, 0xff, 0x61, 0x0a, 0x12])];
    proptest::collection::vec(byte, 0..400)
}

proptest! {
    #![proptest_config(crate::generate::cases())]

    #[test]
    fn json_reads_as_any_reader_does(value in any_json()) {
        let text = value.to_string();
        let (read, duplicates) = strict_json::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(read, serde_json::from_str::<Value>(&text).unwrap());
        prop_assert!(duplicates.is_empty());
    }

    #[test]
    fn json_noise_is_judged_as_any_reader_does(text in "[\\[\\]{}\",:0-9.eE+\\-a\\\\u truefalsn]{0,60}") {
        let known = serde_json::from_str::<Value>(&text);
        match strict_json::parse(text.as_bytes()) {
            Ok((value, _)) => prop_assert_eq!(Some(value), known.ok()),
            Err(error) => prop_assert!(known.is_err(), "{text}: {error}"),
        }
    }

    #[test]
    fn cbor_survives_the_round(value in any_json()) {
        prop_assert_eq!(cbor::decode(&cbor::encode(&value)).unwrap(), value);
    }

    #[test]
    fn cbor_noise_is_bounded(bytes in any_bytes()) {
        if let Ok(value) = cbor::decode(&bytes) {
            let size = measure(&value);
            // The dearest byte is an infinitesimal number, or a null in a list.
            prop_assert!(size.depth <= MAX_DEPTH && size.bytes <= 8 * bytes.len() + 8, "{size:?} of {}", bytes.len());
            prop_assert_eq!(cbor::decode(&cbor::encode(&value)).unwrap(), value);
        }
    }

    #[test]
    fn protobuf_survives_the_round(object in any_object()) {
        let document = protobuf::document(&object).unwrap();
        let mut read = protobuf::decode(&document).unwrap();
        let message = descriptor::message_of(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        descriptor::settle(message.unwrap(), &mut read).unwrap();
        prop_assert_eq!(read, object);
    }

    #[test]
    fn protobuf_damage_is_bounded(object in any_object(), at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        let mut document = protobuf::document(&object).unwrap();
        let (at, cut) = (at.index(document.len()), cut.index(document.len()));
        document[at] = byte;
        for bytes in [&document[..], &document[..cut]] {
            if let Ok(value) = protobuf::decode(bytes) {
                // An empty message takes two bytes, and may be an object with every field that is always there.
                prop_assert!(measure(&value).bytes <= 200 * bytes.len() + 200, "{value}");
            }
        }
    }

    #[test]
    fn protobuf_noise_means_the_same_twice((version, kind, _) in any_kind(), raw in any_bytes()) {
        if let Ok(value) = protobuf::decode(&protobuf::envelope(&version, kind, &raw)) {
            let again = protobuf::document(&value).and_then(|document| protobuf::decode(&document));
            prop_assert_eq!(again.unwrap(), value);
        }
    }
}
