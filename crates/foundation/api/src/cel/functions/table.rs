//! Which functions there are, and what they give.

use crate::cel::types::Type;

/// A function by name. Overloads that differ in their types share a row when they give the same.
#[derive(Debug)]
pub struct Signature {
    pub name: &'static str,
    /// Called as `x.f()`.
    pub member: bool,
    /// Arguments, beside the target.
    pub least: usize,
    pub most: usize,
    pub gives: Gives,
}

#[derive(Debug, Clone, Copy)]
pub enum Gives {
    Any,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Timestamp,
    Duration,
    Texts,
    /// What the target is.
    Target,
    Other(&'static str),
}

impl Gives {
    pub fn of(self, target: Option<&Type>) -> Type {
        match self {
            Self::Any => Type::Any,
            Self::Bool => Type::Bool,
            Self::Int => Type::Int,
            Self::Uint => Type::Uint,
            Self::Double => Type::Double,
            Self::Text => Type::String,
            Self::Bytes => Type::Bytes,
            Self::Timestamp => Type::Timestamp,
            Self::Duration => Type::Duration,
            Self::Texts => Type::List(Type::String.into()),
            Self::Target => target.cloned().unwrap_or(Type::Any),
            Self::Other(name) => Type::Other(name),
        }
    }
}

/// The rows of a name.
pub fn signatures(name: &str, member: bool) -> impl Iterator<Item = &'static Signature> {
    TABLE.iter().filter(move |row| row.name == name && row.member == member)
}

/// Whether `space.name` is a function.
pub fn is_qualified(space: &str, name: &str) -> bool {
    TABLE.iter().any(|row| row.name.split_once('.') == Some((space, name)))
}

const fn member(name: &'static str, least: usize, most: usize, gives: Gives) -> Signature {
    Signature { name, member: true, least, most, gives }
}

const fn global(name: &'static str, least: usize, most: usize, gives: Gives) -> Signature {
    Signature { name, member: false, least, most, gives }
}

const AUTHORIZER: Gives = Gives::Other("kubernetes.authorization.Authorizer");
const FORMAT: Gives = Gives::Other("kubernetes.NamedFormat");
const QUANTITY: Gives = Gives::Other("kubernetes.Quantity");
const SEMVER: Gives = Gives::Other("kubernetes.Semver");
const IP: Gives = Gives::Other("net.IP");
const CIDR: Gives = Gives::Other("net.CIDR");
const URL: Gives = Gives::Other("kubernetes.URL");

use Gives::{Any, Bool, Bytes, Double, Duration, Int, Target, Text, Texts, Timestamp, Uint};

const TABLE: &[Signature] = &[
    // Conversions, and what every type has.
    global("size", 1, 1, Int),
    member("size", 0, 0, Int),
    global("string", 1, 1, Text),
    global("int", 1, 1, Int),
    global("uint", 1, 1, Uint),
    global("double", 1, 1, Double),
    global("bool", 1, 1, Bool),
    global("bytes", 1, 1, Bytes),
    global("dyn", 1, 1, Any),
    global("type", 1, 1, Any),
    global("base64.encode", 1, 1, Text),
    global("base64.decode", 1, 1, Bytes),
    // Text.
    member("contains", 1, 1, Bool),
    member("startsWith", 1, 1, Bool),
    member("endsWith", 1, 1, Bool),
    member("matches", 1, 1, Bool),
    global("matches", 2, 2, Bool),
    member("find", 1, 1, Text),
    member("findAll", 1, 2, Texts),
    member("charAt", 1, 1, Text),
    member("indexOf", 1, 2, Int),
    member("lastIndexOf", 1, 2, Int),
    member("join", 0, 1, Text),
    member("lowerAscii", 0, 0, Text),
    member("upperAscii", 0, 0, Text),
    member("replace", 2, 3, Text),
    member("split", 1, 2, Texts),
    member("substring", 1, 2, Text),
    member("trim", 0, 0, Text),
    member("reverse", 0, 0, Target),
    member("format", 1, 1, Text),
    global("strings.quote", 1, 1, Text),
    global("jsonpatch.escapeKey", 1, 1, Text),
    // Time.
    global("duration", 1, 1, Duration),
    global("timestamp", 1, 1, Timestamp),
    member("getFullYear", 0, 1, Int),
    member("getMonth", 0, 1, Int),
    member("getDate", 0, 1, Int),
    member("getDayOfMonth", 0, 1, Int),
    member("getDayOfWeek", 0, 1, Int),
    member("getDayOfYear", 0, 1, Int),
    member("getHours", 0, 1, Int),
    member("getMinutes", 0, 1, Int),
    member("getSeconds", 0, 1, Int),
    member("getMilliseconds", 0, 1, Int),
    // Lists and sets.
    member("isSorted", 0, 0, Bool),
    member("sum", 0, 0, Any),
    member("min", 0, 0, Any),
    member("max", 0, 0, Any),
    member("distinct", 0, 0, Target),
    member("flatten", 0, 1, Any),
    member("slice", 2, 2, Target),
    member("sort", 0, 0, Target),
    member("first", 0, 0, Any),
    member("last", 0, 0, Any),
    global("lists.range", 1, 1, Any),
    global("sets.contains", 2, 2, Bool),
    global("sets.equivalent", 2, 2, Bool),
    global("sets.intersects", 2, 2, Bool),
    // Numbers.
    global("math.greatest", 1, 64, Any),
    global("math.least", 1, 64, Any),
    global("math.ceil", 1, 1, Double),
    global("math.floor", 1, 1, Double),
    global("math.round", 1, 1, Double),
    global("math.trunc", 1, 1, Double),
    global("math.sqrt", 1, 1, Double),
    global("math.abs", 1, 1, Any),
    global("math.sign", 1, 1, Any),
    global("math.isNaN", 1, 1, Bool),
    global("math.isInf", 1, 1, Bool),
    global("math.isFinite", 1, 1, Bool),
    global("math.bitAnd", 2, 2, Any),
    global("math.bitOr", 2, 2, Any),
    global("math.bitXor", 2, 2, Any),
    global("math.bitNot", 1, 1, Any),
    global("math.bitShiftLeft", 2, 2, Any),
    global("math.bitShiftRight", 2, 2, Any),
    // Optional values.
    global("optional.of", 1, 1, Any),
    global("optional.ofNonZeroValue", 1, 1, Any),
    global("optional.none", 0, 0, Any),
    global("optional.unwrap", 1, 1, Any),
    member("unwrapOpt", 0, 0, Any),
    member("hasValue", 0, 0, Bool),
    member("value", 0, 0, Any),
    member("or", 1, 1, Any),
    member("orValue", 1, 1, Any),
    // Quantities and versions.
    global("quantity", 1, 1, QUANTITY),
    global("isQuantity", 1, 1, Bool),
    member("isInteger", 0, 0, Bool),
    member("asInteger", 0, 0, Int),
    member("asApproximateFloat", 0, 0, Double),
    member("sign", 0, 0, Int),
    member("add", 1, 1, QUANTITY),
    member("sub", 1, 1, QUANTITY),
    global("semver", 1, 2, SEMVER),
    global("isSemver", 1, 2, Bool),
    member("major", 0, 0, Int),
    member("minor", 0, 0, Int),
    member("patch", 0, 0, Int),
    member("isLessThan", 1, 1, Bool),
    member("isGreaterThan", 1, 1, Bool),
    member("compareTo", 1, 1, Int),
    // Addresses.
    global("url", 1, 1, URL),
    global("isURL", 1, 1, Bool),
    member("getScheme", 0, 0, Text),
    member("getHost", 0, 0, Text),
    member("getHostname", 0, 0, Text),
    member("getPort", 0, 0, Text),
    member("getEscapedPath", 0, 0, Text),
    member("getQuery", 0, 0, Any),
    global("ip", 1, 1, IP),
    global("isIP", 1, 1, Bool),
    global("ip.isCanonical", 1, 1, Bool),
    global("cidr", 1, 1, CIDR),
    global("isCIDR", 1, 1, Bool),
    member("family", 0, 0, Int),
    member("isUnspecified", 0, 0, Bool),
    member("isLoopback", 0, 0, Bool),
    member("isLinkLocalMulticast", 0, 0, Bool),
    member("isLinkLocalUnicast", 0, 0, Bool),
    member("isGlobalUnicast", 0, 0, Bool),
    member("containsIP", 1, 1, Bool),
    member("containsCIDR", 1, 1, Bool),
    member("prefixLength", 0, 0, Int),
    member("masked", 0, 0, CIDR),
    member("ip", 0, 0, IP),
    // Named formats.
    member("validate", 1, 1, Any),
    global("format.named", 1, 1, Any),
    global("format.dns1123Label", 0, 0, FORMAT),
    global("format.dns1123Subdomain", 0, 0, FORMAT),
    global("format.dns1035Label", 0, 0, FORMAT),
    global("format.qualifiedName", 0, 0, FORMAT),
    global("format.dns1123LabelPrefix", 0, 0, FORMAT),
    global("format.dns1123SubdomainPrefix", 0, 0, FORMAT),
    global("format.dns1035LabelPrefix", 0, 0, FORMAT),
    global("format.labelValue", 0, 0, FORMAT),
    global("format.uri", 0, 0, FORMAT),
    global("format.uuid", 0, 0, FORMAT),
    global("format.byte", 0, 0, FORMAT),
    global("format.date", 0, 0, FORMAT),
    global("format.datetime", 0, 0, FORMAT),
    // Questions about what a user may do.
    member("path", 1, 1, AUTHORIZER),
    member("group", 1, 1, AUTHORIZER),
    member("serviceAccount", 2, 2, AUTHORIZER),
    member("resource", 1, 1, AUTHORIZER),
    member("subresource", 1, 1, AUTHORIZER),
    member("namespace", 1, 1, AUTHORIZER),
    member("name", 1, 1, AUTHORIZER),
    member("fieldSelector", 1, 1, AUTHORIZER),
    member("labelSelector", 1, 1, AUTHORIZER),
    member("check", 1, 1, AUTHORIZER),
    member("allowed", 0, 0, Bool),
    member("errored", 0, 0, Bool),
    member("error", 0, 0, Text),
    member("reason", 0, 0, Text),
];
