//! A real browser without a window: Chromium, driven by WebDriver.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::LONG;

/// A browser with one page. It is closed on drop.
pub(crate) struct Browser {
    driver: Child,
    session: String,
}

impl Browser {
    /// Opens a page, in a window of this size.
    pub(crate) fn open(url: &str, width: u32, height: u32) -> Self {
        // It takes one port at two addresses, and gives up if another program has it at one of them.
        let mut started = (0..5).filter_map(|_| Self::start_driver());
        let (driver, port) = started
            .next()
            .expect("chromedriver does not say where it listens");
        let base = format!("http://127.0.0.1:{port}/session");
        let mut browser = Self {
            driver,
            session: base,
        };
        // The sandbox does not work as root, and a container has little shared memory.
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            format!("--window-size={width},{height}"),
        ];
        let options = json!({ "goog:chromeOptions": { "args": arguments } });
        let wanted = json!({ "capabilities": { "alwaysMatch": options } });
        let opened = browser.post("", &wanted);
        let id = opened["sessionId"].as_str().expect("a session");
        browser.session = format!("{}/{id}", browser.session);
        browser.post("/url", &json!({ "url": url }));
        browser
    }

    /// Starts a driver. Returns the port on which it listens; `None` if it does not.
    fn start_driver() -> Option<(Child, String)> {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("chromedriver: {error}: install chromium-driver"));
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let mut said = lines.map_while(Result::ok);
        let port = said.find_map(|line| {
            let (_, port) = line.split_once("successfully on port ")?;
            Some(port.trim_end_matches('.').to_owned())
        });
        if port.is_none() {
            driver.wait().unwrap();
        }
        Some((driver, port?))
    }

    /// The value of an expression in the page.
    pub(crate) fn value(&self, expression: &str) -> Value {
        let script = json!({ "script": format!("return {expression}"), "args": [] });
        self.post("/execute/sync", &script)
    }

    /// Waits until an expression has this value.
    #[track_caller]
    pub(crate) fn wait_for(&self, expression: &str, value: &Value) {
        let deadline = Instant::now() + LONG;
        loop {
            let found = self.value(expression);
            if found == *value {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{expression} is {found}, and not {value}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What a screen reader says of the first element that this selects: its role and its label.
    pub(crate) fn spoken(&self, selector: &str) -> String {
        let by = json!({ "using": "css selector", "value": selector });
        let found = self.post("/element", &by);
        let element = found.as_object().and_then(|found| found.values().next());
        let element = element.and_then(Value::as_str).expect("an element");
        let computed = |what: &str| {
            let url = format!("{}/element/{element}/computed{what}", self.session);
            let answer: Value = ureq::get(&url)
                .call()
                .unwrap()
                .body_mut()
                .read_json()
                .unwrap();
            answer["value"].as_str().unwrap_or_default().to_owned()
        };
        format!("{}: {}", computed("role"), computed("label"))
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.session);
        let answer = ureq::post(&url)
            .config()
            .timeout_global(Some(LONG))
            .build()
            .send_json(body);
        let mut answer = answer.unwrap_or_else(|error| panic!("{url}: {error}"));
        let mut answer: Value = answer.body_mut().read_json().unwrap();
        answer["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = ureq::delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
