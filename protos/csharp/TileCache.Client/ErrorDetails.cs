using System;
using System.Collections.Generic;
using System.Linq;
using Google.Protobuf;
using Google.Protobuf.WellKnownTypes;
using Grpc.Core;
using TileCache.StatusDetails.V1;
using StatusMessage = TileCache.StatusDetails.V1.Status;

namespace TileCache.Client
{
    /// <summary>What a failed call says beside its status code and its message.</summary>
    public sealed class ErrorDetails
    {
        private const string TrailerKey = "grpc-status-details-bin";

        private ErrorDetails()
        {
        }

        /// <summary>Stable, for programs, for example <c>TILE_NOT_FOUND</c>. Empty if the daemon did not answer.</summary>
        public string Reason { get; private set; } = string.Empty;

        /// <summary>Facts about the error.</summary>
        public IReadOnlyDictionary<string, string> Facts { get; private set; } = new Dictionary<string, string>();

        /// <summary>The bad fields of a request that was <see cref="StatusCode.InvalidArgument"/>.</summary>
        public IReadOnlyList<FieldViolation> Violations { get; private set; } = Array.Empty<FieldViolation>();

        /// <summary>The least delay before the call is repeated; null where repeating it cannot help.</summary>
        public TimeSpan? RetryAfter { get; private set; }

        /// <summary>Reads an error's details. Those that are missing or broken are left empty.</summary>
        /// <param name="error">The error of a call.</param>
        /// <returns>Its details.</returns>
        public static ErrorDetails From(RpcException error)
        {
            ArgumentNullException.ThrowIfNull(error);
            var details = new ErrorDetails();
            byte[]? serialized = error.Trailers.GetValueBytes(TrailerKey);
            if (serialized is null)
            {
                return details;
            }

            try
            {
                foreach (Any detail in StatusMessage.Parser.ParseFrom(serialized).Details)
                {
                    details.Add(detail);
                }
            }
            catch (Exception unreadable) when (
                unreadable is InvalidProtocolBufferException || unreadable is InvalidOperationException)
            {
                // The code and the message of the call hold without the details.
            }

            return details;
        }

        private void Add(Any detail)
        {
            switch (Any.GetTypeName(detail.TypeUrl))
            {
                case "google.rpc.ErrorInfo":
                    ErrorInfo info = ErrorInfo.Parser.ParseFrom(detail.Value);
                    Reason = info.Reason;
                    Facts = new Dictionary<string, string>(info.Metadata);
                    break;
                case "google.rpc.BadRequest":
                    Violations = BadRequest.Parser.ParseFrom(detail.Value).FieldViolations
                        .Select(violation => new FieldViolation(violation.Field, violation.Description))
                        .ToList();
                    break;
                case "google.rpc.RetryInfo":
                    RetryAfter = RetryInfo.Parser.ParseFrom(detail.Value).RetryDelay?.ToTimeSpan();
                    break;
                default:
                    break;
            }
        }
    }
}
