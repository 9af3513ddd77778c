//! The few nftables statements we use, as a builder over register-level expressions.
//!
//! All rules are for IPv4 packets in an `inet` table; [`RuleBody::ipv4`] starts those that read addresses.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::time::Duration;

use nlink::netlink::nftables::{
    ByteorderOp, ChainName, CmpOp, CtKey, DynsetExpr, DynsetOp, Expr, ExthdrOp, Family, FibFlags, FibResult,
    LookupExpr, MasqExpr, MetaKey, NFTA_NAT_FAMILY, NFTA_NAT_FLAGS, NFTA_NAT_REG_ADDR_MAX, NFTA_NAT_REG_ADDR_MIN,
    NFTA_NAT_REG_PROTO_MAX, NFTA_NAT_REG_PROTO_MIN, NFTA_NAT_TYPE, NatType, NumgenKind, PayloadBase, RawExpr, Register,
    RtKey, SetDataType, SetElement, SetKeyType, TCPOPT_MAXSEG, Verdict,
};

use crate::Cidr;

/// Set on packets whose source must become the node's; the bit kube-proxy uses too, so that other
/// software that knows it keeps its hands off.
pub(crate) const MASQUERADE_MARK: u32 = 0x4000;

const RTN_LOCAL: u32 = 2;
const REJECT_ICMPX: u32 = 2;
const ICMPX_PORT_UNREACHABLE: u8 = 1;
const ICMP_REDIRECT: u8 = 5;
const IFNAMSIZ: usize = 16;

/// Transport protocols that Services and host ports know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// From the API's spelling; absent means TCP.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|p| p.number() == number)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// The expressions of one rule, first to last.
#[derive(Debug, Clone, Default)]
pub(crate) struct RuleBody(Vec<Expr>);

/// Where a looked-up value goes: past the sixteen bytes a lookup key may take.
const VALUE_WORD: usize = 4;

/// Where the number of an endpoint goes in a key: after the destination.
const SLOT_WORD: usize = 3;

fn word(index: usize) -> Register {
    Register::word(index).expect("rules use the first sixteen words")
}

impl RuleBody {
    pub fn any() -> Self {
        Self::default()
    }

    /// Goes on for IPv4 only.
    pub fn ipv4() -> Self {
        Self::any().push(Expr::Meta { dreg: word(0), key: MetaKey::NfProto }).push(Expr::Cmp {
            sreg: word(0),
            op: CmpOp::Eq,
            data: vec![2],
        })
    }

    pub fn into_exprs(self) -> Vec<Expr> {
        self.0
    }

    fn push(mut self, expr: impl Into<Expr>) -> Self {
        self.0.push(expr.into());
        self
    }

    fn interface(self, key: MetaKey, op: CmpOp, name: &str) -> Self {
        let mut data = name.as_bytes().to_vec();
        data.resize(IFNAMSIZ, 0);
        self.push(Expr::Meta { dreg: word(0), key }).push(Expr::Cmp { sreg: word(0), op, data })
    }

    pub fn in_from(self, name: &str) -> Self {
        self.interface(MetaKey::IifName, CmpOp::Eq, name)
    }

    pub fn out_to(self, name: &str) -> Self {
        self.interface(MetaKey::OifName, CmpOp::Eq, name)
    }

    pub fn not_out_to(self, name: &str) -> Self {
        self.interface(MetaKey::OifName, CmpOp::Neq, name)
    }

    fn address(self, offset: u32, op: CmpOp, cidr: Cidr) -> Self {
        let mut body = self.push(Expr::Payload { dreg: word(0), base: PayloadBase::Network, offset, len: 4 });
        if cidr.prefix() < 32 {
            let mask = cidr.mask().octets().to_vec();
            body = body.push(Expr::Bitwise { sreg: word(0), dreg: word(0), len: 4, mask, xor: vec![0; 4] });
        }
        body.push(Expr::Cmp { sreg: word(0), op, data: cidr.network().octets().to_vec() })
    }

    pub fn from(self, cidr: Cidr) -> Self {
        self.address(12, CmpOp::Eq, cidr)
    }

    pub fn not_from(self, cidr: Cidr) -> Self {
        self.address(12, CmpOp::Neq, cidr)
    }

    pub fn to(self, cidr: Cidr) -> Self {
        self.address(16, CmpOp::Eq, cidr)
    }

    pub fn not_to(self, cidr: Cidr) -> Self {
        self.address(16, CmpOp::Neq, cidr)
    }

    fn fib_local(self, flags: FibFlags) -> Self {
        self.push(Expr::Fib { dreg: word(0), result: FibResult::AddrType, flags }).push(Expr::Cmp {
            sreg: word(0),
            op: CmpOp::Eq,
            data: RTN_LOCAL.to_ne_bytes().to_vec(),
        })
    }

    /// The destination is one of this node's addresses.
    pub fn aimed_at_node(self) -> Self {
        self.fib_local(FibFlags::DADDR)
    }

    /// The source is one of this node's addresses.
    pub fn sent_by_node(self) -> Self {
        self.fib_local(FibFlags::SADDR)
    }

    pub fn icmp_redirect(self) -> Self {
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::L4Proto })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: vec![1] })
            .push(Expr::Payload { dreg: word(0), base: PayloadBase::Transport, offset: 0, len: 1 })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: vec![ICMP_REDIRECT] })
    }

    /// `meta l4proto udp udp dport port`
    pub fn to_udp_port(self, port: u16) -> Self {
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::L4Proto })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: vec![Protocol::Udp.number()] })
            .push(Expr::Payload { dreg: word(0), base: PayloadBase::Transport, offset: 2, len: 2 })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: port.to_be_bytes().to_vec() })
    }

    /// The first packet of a TCP connection in either direction: `tcp flags & (syn | rst) == syn`
    pub fn tcp_syn(self) -> Self {
        const FLAGS: u32 = 13;
        const SYN: u8 = 0x02;
        const RST: u8 = 0x04;
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::L4Proto })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: vec![Protocol::Tcp.number()] })
            .push(Expr::Payload { dreg: word(0), base: PayloadBase::Transport, offset: FLAGS, len: 1 })
            .push(Expr::Bitwise { sreg: word(0), dreg: word(0), len: 1, mask: vec![SYN | RST], xor: vec![0] })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: vec![SYN] })
    }

    /// `tcp option maxseg size set rt mtu`
    pub fn clamp_segments(self) -> Self {
        self.push(Expr::Rt { dreg: word(0), key: RtKey::TcpMss })
            .push(Expr::Byteorder { sreg: word(0), dreg: word(0), op: ByteorderOp::Hton, len: 2, size: 2 })
            .push(Expr::ExthdrSet {
                sreg: word(0),
                op: ExthdrOp::TcpOpt,
                exthdr_type: TCPOPT_MAXSEG,
                offset: 2,
                len: 2,
            })
    }

    fn load_source(self, at: usize) -> Self {
        self.push(Expr::Payload { dreg: word(at), base: PayloadBase::Network, offset: 12, len: 4 })
    }

    fn load_destination(self, at: usize) -> Self {
        self.push(Expr::Payload { dreg: word(at), base: PayloadBase::Network, offset: 16, len: 4 })
    }

    fn load_protocol_port(self, at: usize) -> Self {
        self.push(Expr::Meta { dreg: word(at), key: MetaKey::L4Proto }).push(Expr::Payload {
            dreg: word(at + 1),
            base: PayloadBase::Transport,
            offset: 2,
            len: 2,
        })
    }

    /// `ip daddr . meta l4proto . th dport vmap @map`
    pub fn vmap_destination(self, map: &str) -> Self {
        self.load_destination(0).load_protocol_port(1).push(LookupExpr::new(map, word(0)).dreg(Register::Verdict))
    }

    /// `meta l4proto . th dport vmap @map`
    pub fn vmap_port(self, map: &str) -> Self {
        self.load_protocol_port(0).push(LookupExpr::new(map, word(0)).dreg(Register::Verdict))
    }

    /// `ip daddr . meta l4proto . th dport @set`
    pub fn destination_in(self, set: &str) -> Self {
        self.load_destination(0).load_protocol_port(1).push(LookupExpr::new(set, word(0)))
    }

    /// Goes on for destinations that are in `map`, whatever it says of them.
    pub fn destination_mapped_in(self, map: &str) -> Self {
        self.load_destination(0).load_protocol_port(1).lookup_value(map)
    }

    /// Goes on for destinations that have `count` in `counts`, and sends them to one of as many in `endpoints`.
    pub fn dnat_to_one_of(self, count: u32, counts: &str, endpoints: &str) -> Self {
        self.destination_mapped_in(counts)
            .push(Expr::Cmp { sreg: word(VALUE_WORD), op: CmpOp::Eq, data: count.to_ne_bytes().to_vec() })
            .random(SLOT_WORD, count)
            .lookup_value(endpoints)
            .dnat_to_value()
    }

    /// `ip saddr . ip daddr @set`
    pub fn pair_in(self, set: &str) -> Self {
        self.load_source(0).load_destination(1).push(LookupExpr::new(set, word(0)))
    }

    /// `dnat ip to ip daddr . meta l4proto . th dport map @map`
    pub fn dnat_by_destination(self, map: &str) -> Self {
        self.load_destination(0).load_protocol_port(1).lookup_value(map).dnat_to_value()
    }

    /// `dnat ip to meta l4proto . th dport map @map`
    pub fn dnat_by_port(self, map: &str) -> Self {
        self.load_protocol_port(0).lookup_value(map).dnat_to_value()
    }

    /// Loads one of the `count` endpoints in `map` at random.
    pub fn random_endpoint(self, map: &str, count: u32) -> Self {
        self.random(0, count).lookup_value(map)
    }

    /// Goes where one of the `count` verdicts in `map` says, at random.
    pub fn random_verdict(self, map: &str, count: u32) -> Self {
        self.random(0, count).push(LookupExpr::new(map, word(0)).dreg(Register::Verdict))
    }

    fn random(self, at: usize, count: u32) -> Self {
        self.push(Expr::Numgen { dreg: word(at), kind: NumgenKind::Random, modulus: count, offset: 0 })
    }

    /// `ip saddr @set`
    pub fn source_in(self, set: &str) -> Self {
        self.load_source(0).push(LookupExpr::new(set, word(0)))
    }

    /// `ip daddr @set`
    pub fn destination_address_in(self, set: &str) -> Self {
        self.load_destination(0).push(LookupExpr::new(set, word(0)))
    }

    /// `ip saddr vmap @map`
    pub fn vmap_source(self, map: &str) -> Self {
        self.load_source(0).push(LookupExpr::new(map, word(0)).dreg(Register::Verdict))
    }

    /// `ip daddr vmap @map`
    pub fn vmap_destination_address(self, map: &str) -> Self {
        self.load_destination(0).push(LookupExpr::new(map, word(0)).dreg(Register::Verdict))
    }

    /// `meta l4proto`
    pub fn protocol(self, protocol: Protocol) -> Self {
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::L4Proto }).push(Expr::Cmp {
            sreg: word(0),
            op: CmpOp::Eq,
            data: vec![protocol.number()],
        })
    }

    /// `th dport <first>-<last>`; the protocol must have been compared before.
    pub fn port_within(self, ports: RangeInclusive<u16>) -> Self {
        let bound = |op, port: &u16| Expr::Cmp { sreg: word(0), op, data: port.to_be_bytes().to_vec() };
        self.push(Expr::Payload { dreg: word(0), base: PayloadBase::Transport, offset: 2, len: 2 })
            .push(bound(CmpOp::Gte, ports.start()))
            .push(bound(CmpOp::Lte, ports.end()))
    }

    /// Goes on for packets of connections that began earlier, and what belongs to them.
    pub fn of_known_connection(self) -> Self {
        const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
        let mask = ESTABLISHED_OR_RELATED.to_ne_bytes().to_vec();
        self.push(Expr::Ct { dreg: word(0), key: CtKey::State })
            .push(Expr::Bitwise { sreg: word(0), dreg: word(0), len: 4, mask, xor: vec![0; 4] })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Neq, data: vec![0; 4] })
    }

    /// `update @clients { ip saddr timeout … }`
    pub fn remember_client(self, clients: &str, timeout: Duration) -> Self {
        self.load_source(0).push(DynsetExpr::new(DynsetOp::Update, clients, word(0)).timeout(timeout))
    }

    /// `dnat ip to <endpoint>`
    pub fn dnat_to(self, endpoint: SocketAddrV4) -> Self {
        self.push(Expr::Immediate { dreg: word(VALUE_WORD), data: endpoint.ip().octets().to_vec() })
            .push(Expr::Immediate { dreg: word(VALUE_WORD + 1), data: endpoint.port().to_be_bytes().to_vec() })
            .dnat_to_value()
    }

    fn lookup_value(self, map: &str) -> Self {
        self.push(LookupExpr::new(map, word(0)).dreg(word(VALUE_WORD)))
    }

    /// `dnat ip to` the loaded address and port.
    pub fn dnat_to_value(self) -> Self {
        // Written by hand: the library loads constants for NAT only, not values from a map.
        const MAP_ADDRESS_AND_PORT: u32 = 3;
        let (address, port) = (word(VALUE_WORD).wire(), word(VALUE_WORD + 1).wire());
        let attributes = [
            (NFTA_NAT_TYPE, NatType::Dnat as u32),
            (NFTA_NAT_FAMILY, Family::Ip as u32),
            (NFTA_NAT_REG_ADDR_MIN, address),
            (NFTA_NAT_REG_ADDR_MAX, address),
            (NFTA_NAT_REG_PROTO_MIN, port),
            (NFTA_NAT_REG_PROTO_MAX, port),
            (NFTA_NAT_FLAGS, MAP_ADDRESS_AND_PORT),
        ];
        let mut data = Vec::with_capacity(attributes.len() * 8);
        for (kind, value) in attributes {
            data.extend_from_slice(&8u16.to_ne_bytes());
            data.extend_from_slice(&kind.to_ne_bytes());
            data.extend_from_slice(&value.to_be_bytes());
        }
        self.push(RawExpr::new("nat", data))
    }

    /// `meta mark set meta mark | MASQUERADE_MARK`
    pub fn mark_for_masquerade(self) -> Self {
        self.write_mark(!MASQUERADE_MARK, MASQUERADE_MARK)
    }

    pub fn marked_for_masquerade(self) -> Self {
        let mask = MASQUERADE_MARK.to_ne_bytes().to_vec();
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::Mark })
            .push(Expr::Bitwise { sreg: word(0), dreg: word(0), len: 4, mask: mask.clone(), xor: vec![0; 4] })
            .push(Expr::Cmp { sreg: word(0), op: CmpOp::Eq, data: mask })
    }

    pub fn clear_masquerade_mark(self) -> Self {
        self.write_mark(!MASQUERADE_MARK, 0)
    }

    fn write_mark(self, mask: u32, xor: u32) -> Self {
        let (mask, xor) = (mask.to_ne_bytes().to_vec(), xor.to_ne_bytes().to_vec());
        self.push(Expr::Meta { dreg: word(0), key: MetaKey::Mark })
            .push(Expr::Bitwise { sreg: word(0), dreg: word(0), len: 4, mask, xor })
            .push(Expr::MetaSet { key: MetaKey::Mark, sreg: word(0) })
    }

    pub fn masquerade(self) -> Self {
        self.push(MasqExpr::new())
    }

    pub fn accept(self) -> Self {
        self.push(Expr::Verdict(Verdict::Accept))
    }

    pub fn drop(self) -> Self {
        self.push(Expr::Verdict(Verdict::Drop))
    }

    pub fn reject(self) -> Self {
        self.push(Expr::Reject { reject_type: REJECT_ICMPX, icmp_code: ICMPX_PORT_UNREACHABLE })
    }

    /// Back to the chain that jumped here.
    pub fn back(self) -> Self {
        self.push(Expr::Verdict(Verdict::Return))
    }

    pub fn jump(self, chain: &str) -> Self {
        self.push(Expr::Verdict(Verdict::JumpTo(chain_name(chain))))
    }

    pub fn goto(self, chain: &str) -> Self {
        self.push(Expr::Verdict(Verdict::GotoTo(chain_name(chain))))
    }
}

/// Chain names are ours: short, no NUL.
pub(crate) fn chain_name(name: &str) -> ChainName {
    ChainName::new(name).expect("our chain names are short")
}

/// Where a packet for a service arrives: address, protocol, port.
pub(crate) type Destination = (Ipv4Addr, Protocol, u16);

pub(crate) fn destination_type() -> SetKeyType {
    SetKeyType::Concat(vec![SetKeyType::Ipv4Addr, SetKeyType::InetProto, SetKeyType::InetService])
}

/// A destination and the number of one of its endpoints.
pub(crate) fn slot_type() -> SetKeyType {
    SetKeyType::Concat(vec![SetKeyType::Ipv4Addr, SetKeyType::InetProto, SetKeyType::InetService, SetKeyType::Mark])
}

pub(crate) fn slot_key((address, protocol, port): Destination, slot: u32) -> SetElement {
    let (address, protocol) = (SetElement::ipv4(address), SetElement::inet_proto(protocol.number()));
    SetElement::concat([address, protocol, SetElement::port(port), SetElement::mark(slot)])
}

/// What [`slot_key`] wrote.
pub(crate) fn read_slot(key: &[u8]) -> Option<(Destination, u32)> {
    let slot = key.get(12..)?.first_chunk::<4>()?;
    Some((read_destination(key)?, u32::from_ne_bytes(*slot)))
}

/// What [`endpoint_value`] wrote.
pub(crate) fn read_endpoint(value: &[u8]) -> Option<SocketAddrV4> {
    let (address, rest) = value.split_first_chunk::<4>()?;
    Some(SocketAddrV4::new(Ipv4Addr::from(*address), u16::from_be_bytes(*rest.first_chunk::<2>()?)))
}

pub(crate) fn port_type() -> SetKeyType {
    SetKeyType::Concat(vec![SetKeyType::InetProto, SetKeyType::InetService])
}

pub(crate) fn pair_type() -> SetKeyType {
    SetKeyType::Concat(vec![SetKeyType::Ipv4Addr, SetKeyType::Ipv4Addr])
}

pub(crate) fn endpoint_type() -> SetDataType {
    SetDataType::Value(SetKeyType::Concat(vec![SetKeyType::Ipv4Addr, SetKeyType::InetService]))
}

pub(crate) fn destination_key((address, protocol, port): Destination) -> SetElement {
    SetElement::concat([SetElement::ipv4(address), SetElement::inet_proto(protocol.number()), SetElement::port(port)])
}

pub(crate) fn port_key(protocol: Protocol, port: u16) -> SetElement {
    SetElement::concat([SetElement::inet_proto(protocol.number()), SetElement::port(port)])
}

pub(crate) fn endpoint_value(endpoint: SocketAddrV4) -> SetElement {
    SetElement::concat([SetElement::ipv4(*endpoint.ip()), SetElement::port(endpoint.port())])
}

/// What [`destination_key`] wrote.
pub(crate) fn read_destination(key: &[u8]) -> Option<Destination> {
    let (address, rest) = key.split_first_chunk::<4>()?;
    let (protocol, port) = read_port(rest)?;
    Some((Ipv4Addr::from(*address), protocol, port))
}

/// What [`port_key`] wrote.
pub(crate) fn read_port(key: &[u8]) -> Option<(Protocol, u16)> {
    match key {
        [protocol, _, _, _, high, low, ..] => {
            Some((Protocol::from_number(*protocol)?, u16::from_be_bytes([*high, *low])))
        }
        _ => None,
    }
}
