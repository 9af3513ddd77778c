//! What each signer signs: functions of a request alone.

use dhow_api::node_parts;
use dhow_base::pki::CertRequest;

use super::{CLIENT, LEGACY, NODE_CLIENT, NODE_SERVING};

pub const NODES: &str = "system:nodes";
pub const NODE_USER: &str = "system:node:";

/// Why a signer would not sign that, or `None`.
pub fn refusal(signer: &str, request: &CertRequest, usages: &[String]) -> Option<String> {
    let names = !request.dns_names.is_empty() || !request.addresses.is_empty();
    let odd = request.others || !request.emails.is_empty() || !request.uris.is_empty();
    let of_node = || {
        if request.organisations != [NODES] {
            return Some(format!("subject organization is not {NODES}"));
        }
        let name = request.common_name.strip_prefix(NODE_USER).unwrap_or_default();
        name.is_empty().then(|| format!("subject common name does not begin with {NODE_USER}"))
    };
    let wrong_usages = |required: &[&str]| {
        let known = |usage: &str| required.contains(&usage) || usage == "key encipherment";
        let all = required.iter().all(|wanted| usages.iter().any(|usage| usage == wanted));
        (!all || !usages.iter().all(|usage| known(usage)))
            .then(|| format!("usages did not match [{} {}]", required.join(" "), "key encipherment"))
    };
    match signer {
        NODE_CLIENT => of_node()
            .or_else(|| (names || odd).then(|| "DNS, IP, email and URI alternative names are not allowed".to_owned()))
            .or_else(|| wrong_usages(&["digital signature", "client auth"])),
        NODE_SERVING => of_node()
            .or_else(|| (!names).then(|| "DNS or IP subjectAltName is required".to_owned()))
            .or_else(|| odd.then(|| "email and URI alternative names are not allowed".to_owned()))
            .or_else(|| wrong_usages(&["digital signature", "server auth"])),
        node_parts::SIGNER => {
            let known = node_parts::USERS.contains(&request.common_name.as_str());
            (!known || !request.organisations.is_empty())
                .then(|| "the subject is no part of a node".to_owned())
                .or_else(|| (names || odd).then(|| "alternative names are not allowed".to_owned()))
                .or_else(|| wrong_usages(&["digital signature", "client auth"]))
        }
        CLIENT => {
            let allowed = ["digital signature", "key encipherment", "client auth"];
            let client = usages.iter().any(|usage| usage == "client auth");
            (!client || !usages.iter().all(|usage| allowed.contains(&usage.as_str())))
                .then(|| format!("usages must be of [{}] and hold \"client auth\"", allowed.join(" ")))
        }
        LEGACY => None,
        other => Some(format!("nobody here signs for {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usages(list: &[&str]) -> Vec<String> {
        list.iter().map(|one| (*one).to_owned()).collect()
    }

    #[test]
    fn nodes_get_what_nodes_need() {
        let client = usages(&["digital signature", "client auth"]);
        let good = CertRequest {
            common_name: "system:node:a".into(),
            organisations: vec![NODES.into()],
            ..Default::default()
        };
        assert_eq!(refusal(NODE_CLIENT, &good, &client), None);
        let with_rsa = usages(&["digital signature", "key encipherment", "client auth"]);
        assert_eq!(refusal(NODE_CLIENT, &good, &with_rsa), None);
        assert!(refusal(NODE_CLIENT, &good, &usages(&["client auth"])).is_some());
        assert!(refusal(NODE_CLIENT, &good, &usages(&["digital signature", "client auth", "server auth"])).is_some());
        for bad in [
            CertRequest { common_name: "admin".into(), ..good.clone() },
            CertRequest { common_name: NODE_USER.into(), ..good.clone() },
            CertRequest { organisations: vec!["system:masters".into()], ..good.clone() },
            CertRequest { organisations: vec![NODES.into(), "system:masters".into()], ..good.clone() },
            CertRequest { dns_names: vec!["x".into()], ..good.clone() },
            CertRequest { others: true, ..good.clone() },
        ] {
            assert!(refusal(NODE_CLIENT, &bad, &client).is_some(), "{bad:?}");
        }
        let serving = CertRequest { addresses: vec![[192, 0, 2, 1].into()], ..good.clone() };
        let server = usages(&["digital signature", "server auth"]);
        assert_eq!(refusal(NODE_SERVING, &serving, &server), None);
        assert!(refusal(NODE_SERVING, &good, &server).is_some(), "without a name");
        assert!(refusal(NODE_SERVING, &serving, &client).is_some());
    }

    #[test]
    fn parts_of_nodes_are_known_by_name() {
        let client = usages(&["digital signature", "client auth"]);
        let proxy = CertRequest { common_name: "system:kube-proxy".into(), ..Default::default() };
        assert_eq!(refusal(node_parts::SIGNER, &proxy, &client), None);
        for bad in [
            CertRequest { common_name: "system:kube-scheduler".into(), ..proxy.clone() },
            CertRequest { organisations: vec!["system:masters".into()], ..proxy.clone() },
        ] {
            assert!(refusal(node_parts::SIGNER, &bad, &client).is_some(), "{bad:?}");
        }
        assert!(refusal("example.com/mine", &proxy, &client).is_some());
    }
}
