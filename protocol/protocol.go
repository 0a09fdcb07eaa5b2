// Package protocol is the wire between the control plane and the agents.
//
// It owns the MQTT topics, every document that travels on them, the header of
// a tunnel stream and the frames of a session inside it, with their encoding,
// signing and limits. It does no I/O and imports nothing of ours. Its
// invariant: a document that decodes without error is within its limits, and
// one that Verify returns was signed by a pinned key for the host it names.
//
// The flow, after a host has enrolled over HTTPS (Enroll):
//
//	agent                          broker                       control
//	  | CONNECT (will: death) ------>|                              |
//	  | presence birth, hello ------>|----------------------------->|
//	  |<---- desired (COSE_Sign1) ---|<-----------------------------| again until
//	  | status: accepted / refused ->|----------------------------->| acknowledged
//	  |<---- ack (status, telemetry) |<-----------------------------|
//	  | status: applied, workloads ->|----------------------------->|
//	  |<---- dial (one-use token) ---|<-----------------------------| a person
//	  | WebSocket /tunnel ----------------------------------------->| wants a shell
//	  |<---- StreamHeader ------------------------------------------|
//	  | StreamReply, then bytes both ways ------------------------->|
//
// Everything is CBOR with integer keys in deterministic encoding; the CDDL is
// in protocol.cddl, the topics as AsyncAPI in asyncapi.yaml.
package protocol

// Version is the version of every document of this package.
//
//	1  2026-11  first
//
// A reader ignores unknown keys, so adding an optional field needs no new
// version; changing what a field means does.
const Version = 1
