//! Names that Kubernetes takes, from names that people chose.

use sha2::{Digest, Sha256};

/// A DNS label that begins with a letter: lower case, `-` for what is not allowed, shortened with a hash.
pub fn label(text: &str) -> String {
    fit(text, 63, false)
}

/// As [`label`], but dots stay: names of claims and the like.
pub fn subdomain(text: &str) -> String {
    fit(text, 63, true)
}

fn fit(text: &str, limit: usize, dots: bool) -> String {
    let mut name: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || (dots && c == '.') { c } else { '-' })
        .collect();
    name = name.trim_matches(['-', '.']).to_owned();
    if dots {
        while name.contains("..") || name.contains(".-") || name.contains("-.") {
            name = name.replace("..", ".").replace(".-", "-").replace("-.", "-");
        }
    }
    if name.is_empty() {
        return format!("x-{}", hash(text.as_bytes()));
    }
    if !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        name.insert_str(0, "x-");
    }
    if name.len() > limit {
        name.truncate(limit - 9);
        name = format!("{}-{}", name.trim_end_matches(['-', '.']), hash(text.as_bytes()));
    }
    name
}

/// Eight hexadecimal digits.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe() {
        assert_eq!(label("My_App.web"), "my-app-web");
        assert_eq!(label("9lives"), "x-9lives");
        assert_eq!(label(&"a".repeat(80)).len(), 63);
        assert_ne!(label(&"a".repeat(80)), label(&"a".repeat(81)));
        assert!(label("__").starts_with("x-"));
        assert_eq!(subdomain("data._x.y"), "data-x.y");
    }
}
