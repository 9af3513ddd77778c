//! Numbers of the protocol that are used by name here.

/// Record types.
pub mod rtype {
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const DNAME: u16 = 39;
    pub const OPT: u16 = 41;
    pub const DS: u16 = 43;
    pub const RRSIG: u16 = 46;
    pub const NSEC: u16 = 47;
    pub const DNSKEY: u16 = 48;
    pub const NSEC3: u16 = 50;
    /// Only in the answers of compact denial: the name is not there (RFC 9824).
    pub const NXNAME: u16 = 128;
    pub const CDS: u16 = 59;
    pub const CDNSKEY: u16 = 60;
    pub const TSIG: u16 = 250;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
}

pub const CLASS_IN: u16 = 1;
pub const CLASS_ANY: u16 = 255;

pub mod opcode {
    pub const QUERY: u8 = 0;
    pub const NOTIFY: u8 = 4;
}

pub mod rcode {
    pub const NO_ERROR: u16 = 0;
    pub const FORM_ERR: u16 = 1;
    pub const SERV_FAIL: u16 = 2;
    pub const NX_DOMAIN: u16 = 3;
    pub const NOT_IMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const NOT_AUTH: u16 = 9;
    pub const BAD_VERS: u16 = 16;
    pub const BAD_COOKIE: u16 = 23;
}

/// What metrics call a type; rare ones share a word, so that clients cannot fill the memory with labels.
pub fn type_label(kind: u16) -> &'static str {
    match kind {
        rtype::A => "A",
        rtype::AAAA => "AAAA",
        rtype::SRV => "SRV",
        rtype::PTR => "PTR",
        rtype::CNAME => "CNAME",
        rtype::MX => "MX",
        rtype::NS => "NS",
        rtype::SOA => "SOA",
        rtype::TXT => "TXT",
        rtype::DS => "DS",
        rtype::DNSKEY => "DNSKEY",
        rtype::AXFR => "AXFR",
        rtype::IXFR => "IXFR",
        rtype::ANY => "ANY",
        65 => "HTTPS",
        64 => "SVCB",
        _ => "other",
    }
}

pub fn rcode_label(code: u16) -> &'static str {
    match code {
        rcode::NO_ERROR => "NOERROR",
        rcode::FORM_ERR => "FORMERR",
        rcode::SERV_FAIL => "SERVFAIL",
        rcode::NX_DOMAIN => "NXDOMAIN",
        rcode::NOT_IMP => "NOTIMP",
        rcode::REFUSED => "REFUSED",
        rcode::NOT_AUTH => "NOTAUTH",
        rcode::BAD_VERS => "BADVERS",
        rcode::BAD_COOKIE => "BADCOOKIE",
        _ => "other",
    }
}
