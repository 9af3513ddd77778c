//! The little XML that S3 speaks: elements with text and children. Attributes mean nothing here.

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;

/// Answers are flat; what is deeper is none.
const DEPTH: usize = 16;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Element {
    pub name: String,
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    /// The text of the first child of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.children.iter().find(|child| child.name == name).map(|child| child.text.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The root of a document; `None` if it is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::from_reader(bytes);
        let mut open: Vec<Self> = Vec::new();
        loop {
            let ended = match reader.read_event().ok()? {
                Event::Start(tag) if open.len() < DEPTH => {
                    let name = std::str::from_utf8(tag.local_name().into_inner()).ok()?.to_owned();
                    open.push(Self { name, ..Self::default() });
                    None
                }
                Event::Empty(tag) => {
                    let name = std::str::from_utf8(tag.local_name().into_inner()).ok()?.to_owned();
                    Some(Self { name, ..Self::default() })
                }
                Event::End(_) => open.pop(),
                Event::Text(text) => {
                    if let Some(element) = open.last_mut() {
                        element.text.push_str(&text.decode().ok()?);
                    }
                    None
                }
                Event::CData(text) => {
                    open.last_mut()?.text.push_str(&text.decode().ok()?);
                    None
                }
                Event::GeneralRef(reference) => {
                    let element = open.last_mut()?;
                    match reference.resolve_char_ref().ok()? {
                        Some(char) => element.text.push(char),
                        None => element.text.push_str(resolve_predefined_entity(&reference.decode().ok()?)?),
                    }
                    None
                }
                Event::Start(_) | Event::Eof => return None,
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => None,
            };
            if let Some(element) = ended {
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => return Some(element),
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_answers() {
        let text = b"<?xml version=\"1.0\"?>\n<List xmlns=\"x\"><Is>true</Is><C><Key>a&amp;b</Key><ETag>&quot;1&#45;2&quot;</ETag></C>\
                     <C><Key/></C></List>";
        let root = Element::parse(text).unwrap();
        assert_eq!((root.name.as_str(), root.get("Is")), ("List", Some("true")));
        let found: Vec<_> = root.all("C").map(|c| (c.get("Key"), c.get("ETag"))).collect();
        assert_eq!(found, [(Some("a&b"), Some("\"1-2\"")), (Some(""), None)]);
        for bad in [&b""[..], b"text", b"<a>", b"<a></b>", b"<a>&what;</a>", &b"<a>".repeat(1000)] {
            assert_eq!(Element::parse(bad), None, "{bad:?}");
        }
    }
}
