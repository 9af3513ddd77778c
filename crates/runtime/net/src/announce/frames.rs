//! What tells a local network that an address has moved: a gratuitous ARP reply, or an unsolicited neighbour
//! advertisement.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// The frame that says that `address` is at `mac`.
pub(super) fn announcement(address: IpAddr, mac: Mac) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => gratuitous_arp(address, mac),
        IpAddr::V6(address) => unsolicited_advertisement(address, mac),
    }
}

fn ethernet(to: Mac, from: Mac, ethertype: u16) -> Vec<u8> {
    [&to[..], &from[..], &ethertype.to_be_bytes()[..]].concat()
}

fn gratuitous_arp(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    // Ethernet, IPv4, their lengths, reply.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend(BROADCAST);
    frame.extend(address.octets());
    frame
}

fn unsolicited_advertisement(address: Ipv6Addr, mac: Mac) -> Vec<u8> {
    // Override what is known; the target's link-layer address as an option.
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let sum = checksum(address, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, ETHERTYPE_IPV6);
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    // Version 6, then length, protocol, and the hop limit that proves that no router sent it.
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// RFC 4443's, over the pseudo-header and the message.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets()[..], &length[..], &[0, 0, 0, ICMPV6][..], message].concat();
    let words = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn an_arp_reply_to_everyone() {
        let frame = announcement([192, 0, 2, 9].into(), MAC);
        assert_eq!(frame.len(), 42);
        assert_eq!((&frame[..6], &frame[12..14], &frame[20..22]), (&[0xff; 6][..], &[8, 6][..], &[0, 2][..]));
        assert_eq!(
            (&frame[22..28], &frame[28..32], &frame[38..42]),
            (&MAC[..], &[192, 0, 2, 9][..], &[192, 0, 2, 9][..])
        );
    }

    #[test]
    fn an_advertisement_whose_checksum_is_right() {
        let address: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
        let frame = announcement(address.into(), MAC);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(&frame[..6], &[0x33, 0x33, 0, 0, 0, 1]);
        // With its own sum in it, the sum over everything is nothing.
        assert_eq!(checksum(address, ALL_NODES, &frame[54..]), 0);
        assert_eq!(&frame[62..78], &address.octets());
    }
}
