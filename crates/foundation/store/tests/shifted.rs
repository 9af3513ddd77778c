//! A store with an offset: it is a store like any other, and its past begins at the offset.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use dhow_store::{
    Compare, Error, KeyRange, Kv, MemoryKv, Op, Operator, RangeRequest, ShiftedKv, Target, Txn, WatchRequest,
};

const OFFSET: u64 = 1_000_000;

fn shifted() -> Arc<dyn Kv> {
    Arc::new(ShiftedKv::new(Arc::new(MemoryKv::new()), OFFSET))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite() {
    dhow_store::suite::run(|| async { shifted() }).await;
}

#[tokio::test]
async fn what_was_before_the_offset_is_compacted() {
    let kv = shifted();
    assert_eq!(kv.current_revision().await.unwrap(), OFFSET + 1);
    let put = |compare: Vec<Compare>| {
        let op = Op::Put { key: "a".into(), value: "1".into(), lease: 0 };
        let kv = kv.clone();
        async move { kv.txn(Txn { compare, success: vec![op], ..Txn::default() }).await.unwrap() }
    };
    assert_eq!(put(vec![Compare::mod_revision("a", 0)]).await.revision, OFFSET + 2);
    let compacted = |error: Error| matches!(error, Error::Compacted { compacted, .. } if compacted == OFFSET + 1);
    assert!(compacted(kv.range(RangeRequest::at(KeyRange::prefix(""), OFFSET)).await.unwrap_err()));
    let watch = WatchRequest { range: KeyRange::prefix(""), start_revision: 7 };
    assert!(compacted(kv.watch(watch).await.map(drop).unwrap_err()));
    // A key that is there is later than anything from before the move.
    for (operator, holds) in
        [(Operator::Equal, false), (Operator::NotEqual, true), (Operator::Less, false), (Operator::Greater, true)]
    {
        let compare = Compare::new("a", operator, Target::ModRevision(OFFSET));
        assert_eq!(put(vec![compare]).await.succeeded, holds, "{operator:?}");
    }
}
