package e2e

import "fmt"

// Nginx ends TLS in front of a server that was started with --behind-proxy.
type Nginx struct {
	Dir       string // for its files
	Listen    string // HOST:PORT, TLS
	Cert, Key string // PEM files
	Server    string // HOST:PORT of the server, without TLS
}

// Config is its configuration, for nginx -c. A host takes four connections:
// MQTT and a spare stream, each at both sides.
func (n Nginx) Config() string {
	return fmt.Sprintf(`daemon off; pid %[1]s/nginx.pid; error_log stderr; worker_processes 1; worker_rlimit_nofile 20000;
events { worker_connections 19000; }
http {
  access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/ptemp;
  fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  map $http_upgrade $connection_upgrade { default upgrade; '' close; }
  server {
    listen %[2]s ssl; ssl_certificate %[3]s; ssl_certificate_key %[4]s;
    client_max_body_size 0;
    location / {
      proxy_pass http://%[5]s; proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off;
      proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto https;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; proxy_read_timeout 1h;
    }
  }
}`, n.Dir, n.Listen, n.Cert, n.Key, n.Server)
}
