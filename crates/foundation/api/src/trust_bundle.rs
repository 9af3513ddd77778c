//! Trust bundles: certificate authorities in PEM, and what a ClusterTrustBundle may hold.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x509_parser::prelude::{FromDer, X509Certificate};

/// More is no bundle.
pub const MAX_BYTES: usize = 1 << 20;
/// What a PEM line holds.
const LINE: usize = 64;

/// One PEM block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub label: String,
    /// Lines of `Name: value` before its content.
    pub headers: bool,
    pub der: Vec<u8>,
}

/// The blocks of a text; what is between them, and what is no whole block, is passed over.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else {
            continue;
        };
        let (mut body, mut headers, mut whole) = (String::new(), false, false);
        // Whatever comes of it, what a broken block swallowed is looked at again.
        let after = lines.clone();
        for line in lines.by_ref() {
            if line.strip_prefix("-----END ").and_then(|rest| rest.strip_suffix("-----")) == Some(label) {
                whole = true;
                break;
            }
            if line.starts_with("-----") {
                break;
            }
            if body.is_empty() && line.contains(':') {
                headers = true;
            } else {
                body.push_str(line);
            }
        }
        match STANDARD.decode(&body) {
            Ok(der) if whole => found.push(Block { label: label.to_owned(), headers, der }),
            _ => lines = after,
        }
    }
    found
}

/// What is wrong with a bundle's text, in upstream's words; nothing if it may be published.
pub fn problems(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut places = BTreeMap::<Vec<u8>, Vec<usize>>::new();
    for (number, block) in blocks(text).into_iter().enumerate() {
        match problem(&block) {
            Some(why) => problems.push(format!("entry {number} {why}")),
            None => places.entry(block.der).or_default().push(number),
        }
    }
    if !problems.is_empty() {
        return problems;
    }
    if places.is_empty() {
        return vec!["at least one trust anchor must be provided".to_owned()];
    }
    let several = places.into_values().filter(|places| places.len() > 1);
    several
        .map(|places| {
            let places: Vec<String> = places.iter().map(usize::to_string).collect();
            format!("duplicate trust anchor (indices [{}])", places.join(" "))
        })
        .collect()
}

fn problem(block: &Block) -> Option<String> {
    if block.label != "CERTIFICATE" {
        return Some(format!("has bad block type: {}", block.label));
    }
    if block.headers {
        return Some("has PEM block headers".to_owned());
    }
    let Ok((_, certificate)) = X509Certificate::from_der(&block.der) else {
        return Some("does not parse as X.509".to_owned());
    };
    match certificate.basic_constraints() {
        Ok(Some(constraints)) if constraints.value.ca => None,
        Ok(_) => Some("does not have the CA bit set".to_owned()),
        Err(_) => Some("has invalid basic constraints".to_owned()),
    }
}

/// The certificates of all these bundles, each once, in an order that depends on nothing else.
pub fn merged<'a>(bundles: impl IntoIterator<Item = &'a str>) -> String {
    let all: std::collections::BTreeSet<Vec<u8>> =
        bundles.into_iter().flat_map(|text| blocks(text).into_iter().map(|block| block.der)).collect();
    all.iter().map(|der| pem("CERTIFICATE", der)).collect()
}

/// A block as it is usually written.
pub fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text + &format!("-----END {label}-----\n")
}

/// What names of a signer's bundles begin with.
pub fn prefix(signer: &str) -> String {
    format!("{}:", signer.replace('/', ":"))
}

/// The signer in whose name a bundle's name is; none for a bundle of nobody's.
pub fn signer_of(name: &str) -> Option<String> {
    let (signer, _) = name.rsplit_once(':')?;
    Some(signer.replacen(':', "/", 1))
}

/// What is wrong with a bundle's name, given its signer.
pub fn name_problems(name: &str, signer: &str) -> Vec<String> {
    if signer.is_empty() {
        if name.contains(':') {
            return vec!["ClusterTrustBundle without signer name must not have \":\" in its name".to_owned()];
        }
        return crate::names::dns1123_subdomain(name);
    }
    let wanted = prefix(signer);
    match name.strip_prefix(&wanted) {
        Some(rest) => crate::names::dns1123_subdomain(rest),
        None => vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {wanted}")],
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Until the year 2126.
    const ONE: &str = include_str!("trust_bundle/one.pem");
    const LEAF: &str = include_str!("trust_bundle/leaf.pem");

    #[test]
    fn only_certificate_authorities_are_anchors() {
        assert!(problems(ONE).is_empty(), "{:?}", problems(ONE));
        assert!(problems(&format!("what follows is\n{ONE}and that was it\n")).is_empty());
        let headed = ONE.replacen("-----\n", "-----\nComment: x\n\n", 1);
        for (text, wanted) in [
            (String::new(), "at least one trust anchor must be provided"),
            (ONE.replace("-----END CERT", "-----END CART"), "at least one trust anchor must be provided"),
            (format!("{ONE}{ONE}"), "duplicate trust anchor (indices [0 1])"),
            (LEAF.to_owned(), "entry 0 does not have the CA bit set"),
            (format!("{ONE}{LEAF}"), "entry 1 does not have the CA bit set"),
            (ONE.replace("CERTIFICATE-", "PRIVATE KEY-"), "entry 0 has bad block type: PRIVATE KEY"),
            (headed, "entry 0 has PEM block headers"),
            (
                "-----BEGIN CERTIFICATE-----\neA==\n-----END CERTIFICATE-----\n".into(),
                "entry 0 does not parse as X.509",
            ),
        ] {
            assert_eq!(problems(&text), [wanted], "{text}");
        }
    }

    #[test]
    fn a_broken_block_does_not_swallow_the_next() {
        let text = format!("-----BEGIN CERTIFICATE-----\neA\n{ONE}");
        assert_eq!(blocks(&text), blocks(ONE));
        assert_eq!(blocks(ONE).len(), 1);
    }

    #[test]
    fn merged_bundles_have_each_certificate_once() {
        let both = merged([ONE, LEAF, ONE]);
        assert_eq!(blocks(&both).len(), 2);
        assert_eq!(both, merged([LEAF, &format!("said of it:\n{ONE}")]));
        assert_eq!(merged([ONE]), ONE);
        assert_eq!(merged([""]), "");
    }

    #[test]
    fn names_say_whose_a_bundle_is() {
        assert!(name_problems("plain", "").is_empty());
        assert!(name_problems("example.com:mine:v1", "example.com/mine").is_empty());
        assert_eq!(signer_of("example.com:mine:v1").as_deref(), Some("example.com/mine"));
        assert_eq!(signer_of("plain"), None);
        assert!(name_problems("a:b", "")[0].contains("must not have \":\" in its name"));
        assert!(name_problems("other:v1", "example.com/mine")[0].ends_with("prefix example.com:mine:"));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(-----BEGIN [A-Z]{1,3}-----\n|-----END [A-Z]{1,3}-----\n|[A-Za-z0-9+/=]{0,9}\n|x: y\n|.){0,12}") {
            let once = merged([text.as_str()]);
            prop_assert_eq!(blocks(&once).len() <= blocks(&text).len(), true);
            prop_assert_eq!(merged([once.as_str()]), once);
        }
    }
}
