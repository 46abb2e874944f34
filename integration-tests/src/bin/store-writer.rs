//! Writes to a state store, one commit after the other, and says on its standard output when each is done: what the
//! test of power loss watches.

use shared::store::{Op, Store};
use std::{io::Write as _, path::Path};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (folder, commits) = (arguments.next().expect("folder"), arguments.next().expect("number of commits"));
    let store = Store::open(Path::new(&folder)).expect("store");
    for number in 1..=commits.parse::<u32>().expect("number") {
        let ops = vec![
            Op::put("first", "a", &number).expect("JSON"),
            Op::put("second", "b", &number).expect("JSON"),
            Op::put("own", format!("{number}"), &number).expect("JSON"),
        ];
        store.commit(ops).await.expect("commit");
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(format!("done {number}\n").as_bytes()).expect("stdout");
        stdout.flush().expect("stdout");
    }
}
