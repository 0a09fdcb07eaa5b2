// Package e2e tests the whole product: a real server, real hosts and real
// clients in network namespaces, joined by the real install line.
//
// It owns the test network and what stands in front of servers (nginx.go); the
// tests run only with RG_E2E=1, as make test sets it, because they need root and
// the programs in bin/. A World is one network:
//
//	         wan 203.0.113.0/24
//	 ┌──────────┬──────┴────┬─────────────┐
//	srv .10   nat1 .20   client .30    proxy .40
//	            │ 10.77.1.0/24
//	          nat2
//	            │ 192.168.77.0/24
//	          host
//
// Both routers masquerade and drop whatever comes in from outside by itself.
package e2e
