//! Expressions and what they give, as Kubernetes has it.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn run(expression: &str) -> Result<Value, String> {
    let program = Program::compile(expression, &Environment::of(&["self"])).map_err(|error| error.to_string())?;
    let object = json!({
        "name": "web", "replicas": 3, "ratio": 0.5, "none": null, "tags": ["a", "b", "c"],
        "labels": {"app": "web", "a.b/c": "x"}, "ports": [{"name": "http", "port": 80}, {"name": "s", "port": 443}]
    });
    let variables = HashMap::from([("self", Value::from_json(&object))]);
    program.evaluate(&variables, &mut Meter::new(BUDGET)).map_err(|error| error.to_string())
}

#[test]
fn true_expressions() {
    for expression in include_str!("true.cel").lines().filter(|line| !line.is_empty() && !line.starts_with("//")) {
        let result = run(expression);
        assert!(matches!(result, Ok(Value::Bool(true))), "{expression} gave {result:?}");
    }
}

/// The libraries of Kubernetes 1.35's expressions, by its documentation: called on a value, and by a name alone.
const LIBRARIES: [(&str, &[&str], &[&str]); 17] = [
    (
        "the language",
        &["size", "contains", "startsWith", "endsWith", "matches"],
        &[
            "size",
            "matches",
            "string",
            "int",
            "uint",
            "double",
            "bool",
            "bytes",
            "dyn",
            "type",
            "duration",
            "timestamp",
        ],
    ),
    (
        "times",
        &[
            "getFullYear",
            "getMonth",
            "getDate",
            "getDayOfMonth",
            "getDayOfWeek",
            "getDayOfYear",
            "getHours",
            "getMinutes",
            "getSeconds",
            "getMilliseconds",
        ],
        &[],
    ),
    (
        "strings",
        &[
            "charAt",
            "indexOf",
            "lastIndexOf",
            "join",
            "lowerAscii",
            "upperAscii",
            "replace",
            "split",
            "substring",
            "trim",
            "reverse",
            "format",
        ],
        &["strings.quote"],
    ),
    (
        "lists",
        &[
            "isSorted",
            "sum",
            "min",
            "max",
            "indexOf",
            "lastIndexOf",
            "slice",
            "flatten",
            "distinct",
            "sort",
            "reverse",
            "first",
            "last",
        ],
        &["lists.range"],
    ),
    ("sets", &[], &["sets.contains", "sets.equivalent", "sets.intersects"]),
    ("regex", &["find", "findAll"], &[]),
    ("url", &["getScheme", "getHost", "getHostname", "getPort", "getEscapedPath", "getQuery"], &["url", "isURL"]),
    (
        "ip",
        &["family", "isUnspecified", "isLoopback", "isLinkLocalMulticast", "isLinkLocalUnicast", "isGlobalUnicast"],
        &["ip", "isIP", "ip.isCanonical"],
    ),
    ("cidr", &["containsIP", "containsCIDR", "ip", "masked", "prefixLength"], &["cidr", "isCIDR"]),
    (
        "quantity",
        &[
            "sign",
            "isInteger",
            "asInteger",
            "asApproximateFloat",
            "add",
            "sub",
            "isLessThan",
            "isGreaterThan",
            "compareTo",
        ],
        &["quantity", "isQuantity"],
    ),
    ("semver", &["major", "minor", "patch", "isLessThan", "isGreaterThan", "compareTo"], &["semver", "isSemver"]),
    (
        "format",
        &["validate"],
        &[
            "format.named",
            "format.dns1123Label",
            "format.dns1123Subdomain",
            "format.dns1035Label",
            "format.qualifiedName",
            "format.dns1123LabelPrefix",
            "format.dns1123SubdomainPrefix",
            "format.dns1035LabelPrefix",
            "format.labelValue",
            "format.uri",
            "format.uuid",
            "format.byte",
            "format.date",
            "format.datetime",
        ],
    ),
    (
        "authorizer",
        &[
            "path",
            "group",
            "serviceAccount",
            "resource",
            "subresource",
            "namespace",
            "name",
            "fieldSelector",
            "labelSelector",
            "check",
            "allowed",
            "errored",
            "error",
            "reason",
        ],
        &[],
    ),
    (
        "math",
        &[],
        &[
            "math.greatest",
            "math.least",
            "math.ceil",
            "math.floor",
            "math.round",
            "math.trunc",
            "math.sqrt",
            "math.abs",
            "math.sign",
            "math.isNaN",
            "math.isInf",
            "math.isFinite",
            "math.bitAnd",
            "math.bitOr",
            "math.bitXor",
            "math.bitNot",
            "math.bitShiftLeft",
            "math.bitShiftRight",
        ],
    ),
    (
        "optional",
        &["hasValue", "value", "or", "orValue", "unwrapOpt"],
        &["optional.of", "optional.ofNonZeroValue", "optional.none", "optional.unwrap"],
    ),
    ("base64", &[], &["base64.encode", "base64.decode"]),
    ("jsonpatch", &[], &["jsonpatch.escapeKey"]),
];

#[test]
fn every_function_of_the_libraries_is_there_and_tried() {
    let tried = include_str!("true.cel");
    for (library, members, globals) in LIBRARIES {
        for (name, member) in members.iter().map(|name| (name, true)).chain(globals.iter().map(|name| (name, false))) {
            assert!(functions::signatures(name, member).next().is_some(), "{library}: {name}");
            let call = if member { format!(".{name}(") } else { format!("{name}(") };
            assert!(tried.contains(&call) || library == "authorizer", "{library}: no expression calls {name}");
        }
    }
}

#[test]
fn failing_expressions() {
    for (expression, why) in [
        ("self.nothing == 1", "no such key: nothing"),
        ("self.tags[3] == 'd'", "index out of bounds: 3"),
        ("1 / 0 == 1", "division by zero"),
        ("1 % 0 == 1", "modulus by zero"),
        ("9223372036854775807 + 1 > 0", "integer overflow"),
        ("self.name + 1 == ''", "no such overload"),
        ("self.replicas", ""),
        ("quantity('x').isInteger()", "quantities must match the regular expression"),
        ("optional.none().value() == 1", "optional.none() dereference"),
        ("'abc'.charAt(5) == ''", "index out of range: 5"),
        ("duration('x') == duration('1s')", "time: invalid duration \"x\""),
        ("{'a': 1, 'a': 2}.size() == 2", "Failed with repeated key: a"),
        ("int('x') == 1", "type conversion error from 'string' to 'int'"),
    ] {
        match run(expression) {
            Ok(_) => assert_eq!(why, "", "{expression}"),
            Err(error) => assert!(error.starts_with(why) && !why.is_empty(), "{expression} gave {error}"),
        }
    }
}

#[test]
fn what_does_not_compile() {
    for (expression, why) in [
        ("other.x", "ERROR: <input>:1:1: undeclared reference to 'other' (in container '')\n | other.x\n | ^"),
        ("self.x.nofunc()", "undeclared reference to 'nofunc'"),
        ("self >", "Syntax error: mismatched input '<EOF>' expecting"),
        ("1 + 'a' == 2", "found no matching overload for '_+_' applied to '(int, string)'"),
        ("!1", "found no matching overload for '!_' applied to '(int)'"),
        ("'a'.startsWith(1)", "found no matching overload for 'startsWith' applied to 'string.(int)'"),
        ("self.name.matches('(')", "error parsing regexp"),
        ("1 == 1 2", "Syntax error: extraneous input '2' expecting <EOF>"),
        ("1.all(x, true)", "cannot be range of a comprehension"),
        ("has(self)", "invalid argument to has() macro"),
        ("package", "reserved identifier: package"),
        ("Object{a: 1}", "undeclared reference to 'Object'"),
        ("'abc", "token recognition error"),
    ] {
        let error = run(expression).unwrap_err();
        assert!(error.contains(why), "{expression} gave {error}");
    }
}

#[test]
fn hostile_expressions_end_soon() {
    let digits = "[0,1,2,3,4,5,6,7,8,9]";
    let nested = (0..12).fold("true".to_owned(), |inner, depth| format!("{digits}.all(x{depth}, {inner})"));
    let doubled = (0..60).fold("size(x) > 0".to_owned(), |inner, _| format!("cel.bind(x, x + x, {inner})"));
    let replaced = "'aaaaaaaaaa'".to_owned() + &".replace('a', 'aaaaaaaaaa')".repeat(20) + " == ''";
    let listed = (0..60).fold("size(x) > 0".to_owned(), |inner, _| format!("cel.bind(x, [x, x].map(y, y), {inner})"));
    let equal = (0..60).fold("x == [x]".to_owned(), |inner, _| format!("cel.bind(x, [x, x], {inner})"));
    for expression in [
        nested,
        format!("cel.bind(x, 'aaaaaaaaaa', {doubled})"),
        format!("cel.bind(x, [1], {doubled})"),
        format!("cel.bind(x, {equal}, x)").replace("cel.bind(x, [x, x], x == [x])", "cel.bind(x, [1, 1], [x, x] == [x, x])"),
        replaced,
        "lists.range(100000).all(x, lists.range(100000).all(y, x + y >= 0))".into(),
        "lists.range(3000).map(x, 'a').join('aaaaaaaaaa').split('').distinct().size() > lists.range(100000).distinct().size()".into(),
        "'%1000f'.format([1.0]) + ''.matches('(((a{1,99}){1,99}){1,99}){1,99}')".into(),
    ] {
        let begun = std::time::Instant::now();
        let result = run(&expression);
        assert!(begun.elapsed().as_secs() < 20, "{expression} took {:?}", begun.elapsed());
        assert!(result.is_err(), "{expression} gave {result:?}");
    }
    let begun = std::time::Instant::now();
    let _ = run(&format!("cel.bind(x, 1, {listed})"));
    assert!(begun.elapsed().as_secs() < 20);
    for deep in ["(".repeat(20_000), "[".repeat(20_000), "-".repeat(20_000) + "1", "!".repeat(20_000) + "true"] {
        let _ = run(&deep);
    }
    for chain in
        ["1".to_owned() + &" + 1".repeat(20_000), "self".to_owned() + &".a".repeat(20_000), "a ? ".repeat(9_000)]
    {
        assert!(run(&chain).unwrap_err().contains("ERROR"), "{chain}");
    }
    let many = "true".to_owned() + &" && true".repeat(10_000);
    assert!(matches!(run(&many), Ok(Value::Bool(true))));
}

/// Half of the stack that a server's thread has: an evaluation may begin another one, of a variable.
#[test]
fn the_deepest_expressions_need_little_stack() {
    let on_a_small_stack = || {
        let wrap =
            |open: &str, close: &str, times: usize, inner: &str| open.repeat(times) + inner + &close.repeat(times);
        for times in 1..130 {
            for (open, close) in [
                ("(", ")"),
                ("[", "]"),
                ("[1].all(x, ", ")"),
                ("size([", "])"),
                ("true ? ", " : 1"),
                ("{'a': ", "}"),
                ("cel.bind(x, 1, ", ")"),
                ("1 + (", ")"),
                ("dyn(", ")"),
                ("", " + 1"),
                ("", "[0]"),
                ("optional.of(", ")"),
                ("[1].map(x, ", ")"),
                ("true && (false || ", ")"),
                ("[1, 2].sortBy(x, ", ")"),
                ("", ".map(x, x)"),
            ] {
                let _ = run(&wrap(open, close, times, "1"));
                let _ = run(&wrap(open, close, times, "true"));
            }
        }
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(on_a_small_stack).unwrap().join().unwrap();
}

#[test]
fn a_budget_is_shared() {
    let program = Program::compile("lists.range(90000).all(x, x >= 0)", &Environment::default()).unwrap();
    let mut meter = Meter::new(BUDGET);
    let mut done = 0;
    while meter.begin() && program.evaluate(&NoVariables, &mut meter).is_ok() {
        done += 1;
    }
    assert!((5..60).contains(&done), "{done}");
    assert!(meter.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the text, an answer.
    #[test]
    fn never_panics_on_text(text in "\\PC{0,80}") {
        let _ = run(&text);
    }

    #[test]
    fn never_panics_on_pieces(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..24)) {
        let _ = run(&pieces.concat());
    }

    /// Every function, with targets and arguments of every type.
    #[test]
    fn never_panics_on_calls(
        name in prop::sample::select(NAMES),
        target in prop::sample::select(VALUES),
        args in prop::collection::vec(prop::sample::select(VALUES), 0..3),
    ) {
        let args = args.join(", ");
        let _ = run(&format!("dyn({target}).{name}({args})"));
        let _ = run(&format!("{name}({args})"));
        let _ = run(&format!("dyn({target}) < dyn({args})"));
        let _ = run(&format!("dyn({target}) - dyn({args})"));
        let _ = run(&format!("dyn({target})[{args}]"));
    }
}

const PIECES: &[&str] = &[
    "self",
    ".",
    "?",
    "name",
    "tags",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "1",
    "-",
    "9223372036854775808",
    "2.5e300",
    "'é'",
    "b'\\xff'",
    "r'\\'",
    "\"\"\"",
    "&&",
    "||",
    "!",
    "==",
    "<",
    " in ",
    "+",
    "*",
    "/",
    "%",
    "all(x, ",
    "map(x, ",
    "x",
    "has(",
    "cel.bind(x, ",
    "optional.of(",
    "Object{",
    "`a-b`",
    "//",
    "\n",
    "true",
    "null",
    "0x",
    "1u",
    "\u{0}",
];
const VALUES: &[&str] = &[
    "''",
    "'é😀a'",
    "'a,b'",
    "'-1'",
    "'10.0.0.0/8'",
    "'::1'",
    "'1.2.3'",
    "'http://a:80/b?c=d'",
    "'1h'",
    "'%s%d%.3e%x'",
    "0",
    "1",
    "-1",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615u",
    "0.0",
    "-1.5",
    "1e308",
    "1e308 * 10.0",
    "null",
    "true",
    "[]",
    "[1, 'a', null]",
    "['b', 'a']",
    "[[1], [2, [3]]]",
    "{}",
    "{'a': 1}",
    "b'x'",
    "timestamp('9999-12-31T23:59:59Z')",
    "timestamp(0)",
    "duration('2562047h')",
    "duration('-1ns')",
    "quantity('1Gi')",
    "ip('1.2.3.4')",
    "cidr('::/0')",
    "url('/a')",
    "semver('1.0.0')",
    "optional.none()",
    "optional.of(1)",
    "format.uuid()",
    "type(1)",
    "'America/New_York'",
    "'+99:99'",
];
const NAMES: &[&str] = &[
    "size",
    "string",
    "int",
    "uint",
    "double",
    "bool",
    "bytes",
    "type",
    "base64.encode",
    "base64.decode",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "find",
    "findAll",
    "charAt",
    "indexOf",
    "lastIndexOf",
    "join",
    "lowerAscii",
    "upperAscii",
    "replace",
    "split",
    "substring",
    "trim",
    "reverse",
    "format",
    "strings.quote",
    "jsonpatch.escapeKey",
    "duration",
    "timestamp",
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
    "isSorted",
    "sum",
    "min",
    "max",
    "distinct",
    "flatten",
    "slice",
    "sort",
    "first",
    "last",
    "lists.range",
    "sets.contains",
    "sets.equivalent",
    "sets.intersects",
    "math.greatest",
    "math.least",
    "math.ceil",
    "math.round",
    "math.abs",
    "math.sign",
    "math.bitNot",
    "math.bitShiftLeft",
    "math.bitShiftRight",
    "math.sqrt",
    "optional.of",
    "optional.ofNonZeroValue",
    "hasValue",
    "value",
    "quantity",
    "isQuantity",
    "asInteger",
    "asApproximateFloat",
    "sign",
    "add",
    "sub",
    "semver",
    "isSemver",
    "major",
    "compareTo",
    "isLessThan",
    "url",
    "getHost",
    "getHostname",
    "getPort",
    "getQuery",
    "getEscapedPath",
    "ip",
    "isIP",
    "cidr",
    "masked",
    "containsIP",
    "containsCIDR",
    "prefixLength",
    "isLinkLocalMulticast",
    "isGlobalUnicast",
    "ip.isCanonical",
    "format.named",
    "validate",
];
