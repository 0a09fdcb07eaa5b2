"use strict";

// Logs in to one app: the answer is its address, with a ticket that the
// browser uses once. Nothing of the login stays in this page.
const texts = {
  en: {
    open: "Log in to open", email: "E-mail", password: "Password", login: "Log in",
    note: "Check that the address above is your server's. The app itself never sees your password.",
    denied: "You have logged in, but may not use this app, or it is not there. Log in as somebody else, or ask who gave you the address.",
    unreachable: "The server does not answer. Try again in a moment.",
  },
  "zh-CN": {
    open: "登录以打开", email: "邮箱", password: "密码", login: "登录",
    note: "请确认地址栏中是您的服务器。应用本身看不到您的密码。",
    denied: "您已登录，但无权使用该应用，或该应用不存在。请换一个账号登录，或询问给您地址的人。",
    unreachable: "服务器没有响应，请稍后再试。",
  },
};

const byId = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
let language = navigator.language.startsWith("zh") ? "zh-CN" : "en";

function translate() {
  document.documentElement.lang = language;
  for (const el of document.querySelectorAll("[data-text]")) el.textContent = texts[language][el.dataset.text];
  const other = byId("language");
  other.textContent = language === "en" ? "中文" : "English";
  other.lang = language === "en" ? "zh-CN" : "en";
}

async function login(form) {
  const body = JSON.stringify({
    email: form.email.value, password: form.password.value,
    app: asked.get("app") ?? "", state: asked.get("state") ?? "", return: asked.get("return") ?? "",
  });
  let answer;
  try {
    answer = await fetch("/apps/login", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  } catch {
    throw new Error(texts[language].unreachable);
  }
  const data = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(data.detail || answer.statusText);
  location.replace(data.url);
}

byId("language").addEventListener("click", () => {
  language = language === "en" ? "zh-CN" : "en";
  translate();
});

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const button = form.querySelector("button");
  byId("error").hidden = true;
  button.disabled = true;
  try {
    await login(form);
  } catch (err) {
    byId("error").textContent = err.message;
    byId("error").hidden = false;
    button.disabled = false;
  }
});

byId("app").textContent = asked.get("app") ?? "";
byId("denied").hidden = !asked.has("denied");
translate();
