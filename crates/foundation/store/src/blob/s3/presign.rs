//! Addresses at which whoever has them may read: for those who fetch from a bucket by plain HTTP.

use http::Uri;
use jiff::Timestamp;
use ring::digest;

use super::sign::{Secret, encode, hex, key_of, mac};
use super::xml::Element;

/// A bucket, as its readers know it.
pub struct Reader<'a> {
    /// `https://host[:port]`; the bucket is in the path.
    pub endpoint: &'a str,
    pub bucket: &'a str,
    pub region: &'a str,
    /// `None`: anyone may read it.
    pub secret: Option<&'a Secret>,
}

/// One page of what a bucket has.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys and sizes.
    pub objects: Vec<(String, u64)>,
    /// Where the next page begins.
    pub next: Option<String>,
}

impl Page {
    /// Reads what `ListObjectsV2` answers; `None` if it is nothing like it.
    pub fn parse(answer: &[u8]) -> Option<Self> {
        let root = Element::parse(answer).filter(|root| root.name == "ListBucketResult")?;
        let object = |one: &Element| Some((one.get("Key")?.to_owned(), one.get("Size")?.parse().ok()?));
        let objects = root.all("Contents").map(object).collect::<Option<_>>()?;
        let more = root.get("IsTruncated") == Some("true");
        let next = root.get("NextContinuationToken").filter(|_| more).map(str::to_owned);
        Some(Self { objects, next })
    }
}

impl Reader<'_> {
    /// The address of an object, for so many seconds from now.
    pub fn object(&self, key: &str, seconds: u32) -> Option<String> {
        self.address(&format!("/{}", encode(key, true)), &[], Timestamp::now(), seconds)
    }

    /// The address of a page of the keys that begin with `prefix`.
    pub fn page(&self, prefix: &str, next: Option<&str>, seconds: u32) -> Option<String> {
        let mut query = vec![("list-type", "2"), ("prefix", prefix)];
        query.extend(next.map(|next| ("continuation-token", next)));
        self.address("", &query, Timestamp::now(), seconds)
    }

    /// `None` if the endpoint is no address.
    fn address(&self, path: &str, query: &[(&str, &str)], now: Timestamp, seconds: u32) -> Option<String> {
        let endpoint = self.endpoint.trim_end_matches('/');
        let host = endpoint.parse::<Uri>().ok()?.authority()?.to_string();
        let bucket = if self.bucket.is_empty() { String::new() } else { format!("/{}", encode(self.bucket, false)) };
        let path = format!("{bucket}{path}");
        let mut pairs: Vec<(String, String)> =
            query.iter().map(|(name, value)| (encode(name, false), encode(value, false))).collect();
        let Some(secret) = self.secret else { return Some(format!("{endpoint}{path}{}", joined(&pairs, "?"))) };
        let stamp = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = stamp.get(..8).unwrap_or_default();
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let mut add = |name: &str, value: &str| pairs.push((name.to_owned(), encode(value, false)));
        add("X-Amz-Algorithm", "AWS4-HMAC-SHA256");
        add("X-Amz-Credential", &format!("{}/{scope}", secret.access_key));
        add("X-Amz-Date", &stamp);
        add("X-Amz-Expires", &seconds.to_string());
        add("X-Amz-SignedHeaders", "host");
        if let Some(token) = &secret.token {
            add("X-Amz-Security-Token", token);
        }
        pairs.sort_unstable();
        let sorted = joined(&pairs, "");
        let canonical = format!("GET\n{path}\n{sorted}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
        let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashed}");
        let signature = hex(&mac(&key_of(secret, day, self.region), text.as_bytes()));
        Some(format!("{endpoint}{path}?{sorted}&X-Amz-Signature={signature}"))
    }
}

fn joined(pairs: &[(String, String)], before: &str) -> String {
    let all: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if all.is_empty() { String::new() } else { format!("{before}{}", all.join("&")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The example in the documentation of the Amazon S3 API; there the bucket is in the host's name.
    #[test]
    fn signs_addresses_as_documented() {
        let secret = Secret::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None);
        let reader = Reader {
            endpoint: "https://examplebucket.s3.amazonaws.com",
            bucket: "",
            region: "us-east-1",
            secret: Some(&secret),
        };
        let url = reader.address("/test.txt", &[], "2013-05-24T00:00:00Z".parse().unwrap(), 86_400).unwrap();
        let signature = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
        assert!(url.ends_with(&format!("X-Amz-Signature={signature}")), "{url}");
        let open = Reader { endpoint: "http://s3.example:9000/", bucket: "b", region: "", secret: None };
        assert_eq!(open.object("a b/c", 1).unwrap(), "http://s3.example:9000/b/a%20b/c");
        assert_eq!(open.page("a/", None, 1).unwrap(), "http://s3.example:9000/b?list-type=2&prefix=a%2F");
        let wrong = Reader { endpoint: "no address", ..open };
        assert_eq!(wrong.object("a", 1), None);
    }

    #[test]
    fn reads_pages() {
        let text = b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>\
            <Contents><Key>a/b</Key><Size>3</Size></Contents></ListBucketResult>";
        let page = Page { objects: vec![("a/b".to_owned(), 3)], next: Some("t".to_owned()) };
        assert_eq!(Page::parse(text), Some(page));
        assert_eq!(Page::parse(b"<Error><Code>AccessDenied</Code></Error>"), None);
    }
}
